"""Makes ``deploy`` importable: it is a folder of the repository and no installed package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
