"""Settings come from four places, in order, and every mistake is named."""

from pathlib import Path

import pytest

from multiflora.server.adapter_source import AdapterSource, parse_adapter
from multiflora.server.settings import ServeSettings
from multiflora.server.settings_source import read_settings
from multiflora.server.size import parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", 123),
        ("4GiB", 4 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5G", 3 * 2**29),
        (" 2 kib ", 2048),
        ("7k", 7168),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "4 potatoes", "1,5G", "0x10", "4GiBs"])
def test_other_sizes_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="for example 4GiB"):
        parse_size(text)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nhost: 1.1.1.1\nmax-model-len: 11\nquantize_head: true\n")
    return path


def test_flags_win_over_environment_over_file_over_defaults(config):
    environment = {"MULTIFLORA_PORT": "2", "MULTIFLORA_HOST": "2.2.2.2", "PATH": "/bin"}

    settings = read_settings({"port": 3}, environment, config=config)

    assert (settings.port, settings.host, settings.max_model_len) == (3, "2.2.2.2", 11)
    assert settings.quantize_head is True
    assert settings.drain_timeout == 30


def test_the_environment_can_name_the_file(config):
    assert read_settings({}, {"MULTIFLORA_CONFIG": str(config)}).port == 1


def test_toml_says_the_same(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text('port = 1\nkv-cache-memory = "1GiB"\n[adapters]\na = "/x"\n"b.c" = "/y"\n')

    settings = read_settings({}, {}, config=path)

    assert (settings.port, settings.kv_cache_memory) == (1, 2**30)
    assert settings.adapters == (AdapterSource("a", Path("/x")), AdapterSource("b.c", Path("/y")))


@pytest.mark.parametrize(
    "name", ["a,b", "../x", "/x", "x/", "a/b", "a b", "-a", "ä", "merge", "a" * 129]
)
def test_names_that_would_break_labels_or_paths_are_refused(name):
    with pytest.raises(ValueError, match="cannot be an adapter's name"):
        parse_adapter(f"{name}=/x")


@pytest.mark.parametrize("name", ["a", "team.a-1.0_b", "ft:base:me::1"])
def test_usual_names_are_accepted(name):
    assert parse_adapter(f"{name}=/x").name == name


def test_adapters_may_be_a_list_or_one_variable(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("adapters: [a=/x, b=/y=z]\n")
    expected = (AdapterSource("a", Path("/x")), AdapterSource("b", Path("/y=z")))

    assert read_settings({}, {}, config=path).adapters == expected
    assert read_settings({}, {"MULTIFLORA_ADAPTERS": "a=/x, b=/y=z"}).adapters == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot: 1", r"unknown key in .*: prot; did you mean port\?"),
        ("port: many", "port in .*: 'many' is not a whole number"),
        ("device: tpu", "device in .*: 'tpu' is none of auto, cpu, cuda"),
        ("dry_run: maybe", "neither true nor false"),
        ("adapters: [nope]", "'nope' is not NAME=PATH"),
        ("{", "is malformed"),
        ("- port", "must hold keys and values"),
    ],
)
def test_mistakes_in_a_file_name_the_key_and_the_file(tmp_path, content, message):
    path = tmp_path / "serve.yaml"
    path.write_text(content)

    with pytest.raises(ValueError, match=message):
        read_settings({}, {}, config=path)


def test_missing_or_strange_files_are_named(tmp_path):
    (tmp_path / "serve.ini").write_text("")

    with pytest.raises(ValueError, match=r"absent\.yaml cannot be read"):
        read_settings({}, {}, config=tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"must end in \.yaml, \.yml or \.toml"):
        read_settings({}, {}, config=tmp_path / "serve.ini")


def test_unknown_variables_are_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="MULTIFLORA_PROT; did you mean MULTIFLORA_PORT"):
        read_settings({}, {"MULTIFLORA_PROT": "1"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70000}, "--port is 70000"),
        ({"drain_timeout": -1.0}, "--drain-timeout is -1"),
        ({"drain_timeout": float("nan")}, "--drain-timeout is nan"),
        ({"stall_timeout": 0.0}, "--stall-timeout is 0"),
        ({"max_choices": 129}, "--max-choices is 129"),
        ({"adapters": (AdapterSource("a", Path()),) * 2}, "'a' is given twice"),
    ],
)
def test_values_out_of_range_name_the_flag(values, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**values)


def test_the_engine_gets_its_part(tmp_path):
    settings = ServeSettings(
        model="x",
        dtype="float32",
        quantization="nf4",
        quantize_head=True,
        device="cpu",
        kernels="torch",
        batch_invariant=True,
        cuda_graphs=False,
        threads=2,
        max_model_len=99,
        data_dir=tmp_path,
        kv_cache_memory=1,
        adapter_memory=2,
        adapter_host_memory=5,
        training_memory=6,
        training_pace="idle-only",
        max_num_requests=3,
        max_batched_tokens=4,
    )

    config = settings.engine_config(tmp_path / "base")

    assert config.base.model == str(tmp_path / "base")
    assert (config.base.dtype, config.base.quantize_head) == ("float32", True)
    assert (config.device, config.kernels, config.threads) == ("cpu", "torch", 2)
    assert (config.batch_invariant, config.cuda_graphs) == (True, False)
    assert (config.max_model_len, config.data_dir) == (99, str(tmp_path))
    assert (config.cache.memory_bytes, config.adapter.memory_bytes) == (1, 2)
    assert config.adapter.host_memory_bytes == 5
    assert (config.training.memory_bytes, config.training.pace) == (6, "idle-only")
    assert config.scheduler.max_num_requests == 3
    assert config.scheduler.max_batched_tokens == 4


def test_the_defaults_are_the_engine_s_own(tmp_path):
    ours = ServeSettings().engine_config(tmp_path).scheduler

    assert ours == type(ours)()
