"""multiflora's command line, told to stop when its standard input ends.

Whoever started it holds the other end of that pipe: however it dies, its server drains and goes.
"""

import os
import signal
import sys
import threading

from multiflora.server.cli import main


def _stop_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_input, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
