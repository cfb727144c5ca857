"""Packed adapters: good ones of every kind pass, hostile ones are refused for their own reason."""

import gzip
import io
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.adapters.archive import ArchiveLimits, unpack
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.adapters.inspection import GateLimits

CONFIG, WEIGHTS = b'{"r": 4}', random.Random(1).randbytes(5000)
FILES = {CONFIG_NAME: CONFIG, WEIGHTS_NAME: WEIGHTS}
Pack = Callable[[Mapping[str, bytes]], bytes]


def tar(
    files: Mapping[str, bytes], *extra: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT
) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for member in extra:
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            # A fraction makes tarfile write an extended header, as it does for files from a disk.
            member.mtime = 1.5
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(files: Mapping[str, bytes], *extra: zipfile.ZipInfo, method: int = 8) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for member in extra:
            archive.writestr(member, "x")
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def zip_link(name: str) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = 0o120777 << 16
    return found


def twice_in_a_zip() -> bytes:
    """The second name is renamed in place: zipfile would warn."""
    return zipped({**FILES, "adapter_confix.json": b"{}"}).replace(b"confix", b"config")


def patched(content: bytes, *, at: bytes, skip: int, value: bytes) -> bytes:
    """Overwrite ``value`` ``skip`` bytes after every place of the signature ``at``."""
    parts = content.split(at)
    return parts[0] + b"".join(
        at + part[:skip] + value + part[skip + len(value) :] for part in parts[1:]
    )


def encrypted_zip() -> bytes:
    content = patched(zipped(FILES), at=b"PK\3\4", skip=2, value=b"\1\0")
    return patched(content, at=b"PK\1\2", skip=4, value=b"\1\0")


def overlapping_zip() -> bytes:
    """Both directory entries point at the first member."""
    return patched(zipped(FILES), at=b"PK\1\2", skip=38, value=bytes(4))


def large_directory_zip() -> bytes:
    """The end record claims a directory of 1.5 MiB, which is there."""
    content = zipped(FILES) + bytes(3 << 19)
    return content + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 3 << 19, 500, 0)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    head = member("header", kind)
    head.size = len(records)
    return head.tobuf() + records + bytes(-len(records) % 512) + tar(FILES)


def folder_with_content() -> bytes:
    head = member("adapter", tarfile.DIRTYPE)
    head.size = 512
    return head.tobuf(tarfile.USTAR_FORMAT) + bytes(512) + tar(FILES)


def bad_checksum(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


TOO_MANY = {f"{i}.txt": b"" for i in range(16)} | FILES
BOMB = FILES | {WEIGHTS_NAME: bytes(3 << 20)}
NOT_PADDED = tar(FILES).rstrip(b"\0")

HOSTILE: Mapping[str, tuple[bytes, str, str]] = {
    "absolute path": (tar({"/etc/x": b"", **FILES}), "unsafe_archive", "/etc/x' has an absolute"),
    "drive letter": (tar({"C:x": b"", **FILES}), "unsafe_archive", "absolute path"),
    "parent": (tar({"../x": b"", **FILES}), "unsafe_archive", "'../x' has a path that leaves"),
    "parent inside": (tar({"a/../x": b"", **FILES}), "unsafe_archive", "leaves"),
    "double slash": (tar({"a//x": b"", **FILES}), "unsafe_archive", "not canonical"),
    "backslash": (zipped({"..\\x": b"", **FILES}), "unsafe_archive", "no plain name"),
    "line break in a name": (tar({"a\nb": b"", **FILES}), "unsafe_archive", "no plain name"),
    "absolute path in a zip": (zipped({"/x": b"", **FILES}), "unsafe_archive", "absolute"),
    "parent in a zip": (zipped({"../../x": b"", **FILES}), "unsafe_archive", "leaves"),
    "symbolic link": (
        tar({}, member(WEIGHTS_NAME, tarfile.SYMTYPE, "/etc/passwd")),
        "unsafe_archive",
        "is a symbolic link",
    ),
    "hard link": (
        tar(FILES, member("x", tarfile.LNKTYPE, CONFIG_NAME)),
        "unsafe_archive",
        "is a hard link",
    ),
    "long link": (
        tar(FILES, member("x", tarfile.SYMTYPE, "y" * 200), form=tarfile.GNU_FORMAT),
        "unsafe_archive",
        "is a link",
    ),
    "device": (tar(FILES, member("x", tarfile.CHRTYPE)), "unsafe_archive", "is a device"),
    "pipe": (tar(FILES, member("x", tarfile.FIFOTYPE)), "unsafe_archive", "is a pipe"),
    "sparse": (
        tar(FILES, member("x", tarfile.GNUTYPE_SPARSE)),
        "unsafe_archive",
        "is a sparse file",
    ),
    "pax sparse": (pax(b"24 GNU.sparse.size=9999\n"), "unsafe_archive", "GNU.sparse.size"),
    "pax size": (pax(b"10 size=9\n"), "unsafe_archive", "pax header 'size'"),
    "pax without a length": (pax(b"path=x\n"), "invalid_archive", "pax header is malformed"),
    "pax of length zero": (pax(b"0 path=x\n"), "invalid_archive", "pax header is malformed"),
    "huge pax header": (pax(b"x" * (70 << 10)), "archive_too_large", "header of 71680 bytes"),
    "pax header before another": (
        pax(b"", kind=tarfile.XHDTYPE)[:512] + pax(b"10 path=x\n"),
        "unsafe_archive",
        "of tar type",
    ),
    "folder with content": (folder_with_content(), "invalid_archive", "'adapter' has content"),
    "link in a zip": (zipped(FILES, zip_link("x")), "unsafe_archive", "'x' is a link"),
    "twice": (
        tar({f"./{CONFIG_NAME}": CONFIG, **FILES}),
        "unsafe_archive",
        "occurs twice",
    ),
    "twice in a zip": (twice_in_a_zip(), "unsafe_archive", f"'{CONFIG_NAME}' occurs twice"),
    "twice but for case": (tar({"README": b"", "readme": b""}), "unsafe_archive", "twice"),
    "nested folders": (
        tar({f"a/b/{n}": c for n, c in FILES.items()}),
        "unsafe_archive",
        "deeper than one folder",
    ),
    "two folders": (
        tar({f"a/{CONFIG_NAME}": CONFIG, f"b/{WEIGHTS_NAME}": WEIGHTS}),
        "unsafe_archive",
        "another folder",
    ),
    "long path": (tar({"x" * 101: b"", **FILES}), "unsafe_archive", "over 100 characters"),
    "many members": (tar(TOO_MANY), "archive_too_large", "too many members, over 16"),
    "many in a zip": (zipped(TOO_MANY), "archive_too_large", "too many members, over 16"),
    "gzip bomb": (gzip.compress(tar(BOMB)), "archive_too_large", "20 times"),
    "zip bomb": (zipped(BOMB), "archive_too_large", "20 times its own size"),
    "bomb in an ignored file": (
        gzip.compress(tar({"README.md": bytes(3 << 20), **FILES})),
        "archive_too_large",
        "20 times",
    ),
    "large file": (os.urandom(3 << 20), "archive_too_large", "has 3145728 bytes"),
    "encrypted zip": (encrypted_zip(), "unsafe_archive", "is encrypted"),
    "lzma zip": (zipped(FILES, method=zipfile.ZIP_LZMA), "unsafe_archive", "than deflate"),
    "overlapping zip": (overlapping_zip(), "unsafe_archive", "overlaps another member"),
    "large zip directory": (large_directory_zip(), "archive_too_large", "directory has"),
    "truncated tar": (NOT_PADDED[:-600], "invalid_archive", "truncated"),
    "truncated gzip": (gzip.compress(tar(FILES))[:-20], "invalid_archive", "damaged"),
    "truncated zip": (zipped(FILES)[:-20], "invalid_archive", "damaged"),
    "wrong checksum": (bad_checksum(gzip.compress(tar(FILES))), "invalid_archive", "CRC"),
    "wrong checksum in a zip": (
        zipped(FILES, method=0).replace(b'"r": 4', b'"r": 5'),
        "invalid_archive",
        "CRC",
    ),
    "data after the end": (tar(FILES) + tar(FILES), "invalid_archive", "after the end"),
    "no archive": (b"\x80\x04pickle", "invalid_archive", "this is no archive"),
    "empty": (b"", "invalid_archive", "this is no archive"),
    "no config": (tar({WEIGHTS_NAME: WEIGHTS}), "not_found", f"no {CONFIG_NAME}"),
    "no weights": (zipped({CONFIG_NAME: CONFIG}), "not_found", f"no {WEIGHTS_NAME}"),
    "other case": (tar({CONFIG_NAME.upper(): CONFIG}), "not_found", f"no {CONFIG_NAME}"),
    "pickle": (tar({CONFIG_NAME: CONFIG, "adapter_model.bin": b""}), "unsafe_format", "pickle"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_by_name(
    case: str, tmp_path: Path, limits: GateLimits
) -> None:
    content, code, message = HOSTILE[case]
    (tmp_path / "packed").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterRejected, match=message) as caught:
        unpack(tmp_path / "packed", tmp_path / "out", limits=limits.archive)
    assert caught.value.code == code
    assert str(caught.value).isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} <= FILES.keys()


def test_the_gate_refuses_them_all_at_no_lasting_cost(
    tmp_path: Path, gate_refuses_all: Callable[[Mapping[Path, str]], None]
) -> None:
    codes = {}
    for number, (content, code, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}").write_bytes(content)
        codes[tmp_path / f"{number}"] = code
    gate_refuses_all(codes)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(tar(FILES))
    (tmp_path / "link").symlink_to("packed")
    os.mkfifo(tmp_path / "pipe")
    for name, code in {
        "link": "unsafe_file",
        "pipe": "unsafe_file",
        "absent": "not_found",
    }.items():
        with pytest.raises(AdapterRejected, match=name) as caught:
            unpack(tmp_path / name, tmp_path)
        assert caught.value.code == code


EXTRA = {"README.md": b"# x", "tokenizer.json": b"{}", "adapter_model.bin": b"\x80", "._x": b""}
GOOD_NAMES: Mapping[str, Mapping[str, bytes]] = {
    "flat": FILES,
    "one folder": {f"my adapter/{name}": content for name, content in FILES.items()},
    "dots": {f"./{name}": content for name, content in FILES.items()},
    "dot folder": {f"./x/{name}": content for name, content in FILES.items()},
    "more files": EXTRA | FILES,
    "resource forks": {
        f"__MACOSX/x/._{CONFIG_NAME}": b"",
        **{f"x/{n}": c for n, c in FILES.items()},
    },
    "long folder": {f"{'x' * 120}/{name}": content for name, content in FILES.items()},
    "accents": {f"adapt\u00e9/{name}": content for name, content in FILES.items()},
}
GOOD_PACKS: Mapping[str, Pack] = {
    "tar": tar,
    "gnu": lambda files: tar(files, form=tarfile.GNU_FORMAT),
    "ustar": lambda files: tar(files, form=tarfile.USTAR_FORMAT),
    "folder": lambda files: tar(
        files, member(f"{next(iter(files)).rpartition('/')[0] or '.'}/", tarfile.DIRTYPE)
    ),
    "tar.gz": lambda files: gzip.compress(tar(files)),
    "two gzips": lambda files: gzip.compress(tar(files)[:700]) + gzip.compress(tar(files)[700:]),
    "git": lambda files: pax(b"16 comment=abcd\n", tarfile.XGLTYPE)[:1024] + tar(files),
    "zip": zipped,
    "stored": lambda files: zipped(files, method=0),
}


@pytest.mark.parametrize(
    ("pack", "names"),
    # ustar has no room for a long folder name.
    sorted({(p, n) for p in GOOD_PACKS for n in GOOD_NAMES} - {("ustar", "long folder")}),
)
def test_a_good_archive_gives_its_two_files(pack: str, names: str, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(GOOD_PACKS[pack](GOOD_NAMES[names]))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "packed", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "out").iterdir())


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_ratio is 0"):
        ArchiveLimits(max_ratio=0)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_unpack_or_are_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = {**FILES, WEIGHTS_NAME: WEIGHTS[:300], "x" * 150: b""}
    pack = GOOD_PACKS[data.draw(st.sampled_from(sorted(GOOD_PACKS.keys() - {"ustar"})))]
    content = bytearray(pack(files))
    original = bytes(content)
    for _ in range(data.draw(st.integers(1, 4))):
        start, origin = (data.draw(st.integers(0, len(original))) for _ in range(2))
        match data.draw(st.sampled_from(["truncate", "flip", "splice"])):
            case "truncate":
                del content[start:]
            case "flip":
                content[start : start + 1] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                length = data.draw(st.sampled_from([4, 46, 512, 1024]))
                content[start : start + length] = original[origin : origin + length]
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "packed").write_bytes(content)
    try:
        unpack(folder / "packed", folder, limits=ArchiveLimits(max_unpacked_bytes=1 << 20))
    except AdapterRejected:
        pass
    else:
        assert FILES.keys() <= {path.name for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir()} <= {"packed", *FILES}
