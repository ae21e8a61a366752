"""Amounts of memory: stated, and read from files as Linux has them."""

from pathlib import Path

import pytest

from pixdec.inference.config import parse_memory
from pixdec.inference.limits import available_memory, host_memory


@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ("8GB", 8 * 10**9),
        ("7.5GiB", 7.5 * 2**30),
        (" 512 mb ", 512 * 10**6),
        ("1.TB", 10**12),
        (".5GB", 5 * 10**8),
        ("8000000000B", 8 * 10**9),
        (8_000_000_000, 8 * 10**9),
    ],
)
def test_amounts(stated: str | int, size: float):
    assert parse_memory(stated) == size


@pytest.mark.parametrize(
    "stated", ["8", "8 G", "GB", "-8GB", "8gbit", "8iB", "1e9B", "", "0GB", 8, -1, True, 8.5, None]
)
def test_what_is_no_amount(stated: object):
    with pytest.raises(ValueError, match="expected an amount such as '8GB'") as error:
        parse_memory(stated)  # type: ignore[arg-type]
    assert repr(stated) in str(error.value)


def test_what_is_free_here():
    assert 10**8 < available_memory("cpu") < 10**14
    with pytest.raises(ValueError, match="memory='8GB'"):
        available_memory("meta")


def machine(root: Path, files: dict[str, str]) -> int:
    for path, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return host_memory(root)


def group(limit: str, used: int, cached: str) -> dict[str, str]:
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": f"anon 1\n{cached}\n"}


def test_a_machine_without_groups(tmp_path: Path):
    assert machine(tmp_path, {}) == 8000 * 1024


@pytest.mark.parametrize(("outer", "left"), [("max", 1_900_000), ("1500000", 600_000), ("99999999999", 1_900_000)])
def test_the_tightest_group_counts(tmp_path: Path, outer: str, left: int):
    """A limit of 2 MB inside another; cache that is given back when needed is free."""
    files = {"proc/self/cgroup": "0::/outer/inner\n"}
    for folder, values in (
        ("outer/inner", group("2000000", 300_000, "inactive_file 200000")),
        ("outer", group(outer, 1_000_000, "inactive_file 100000")),
    ):
        files |= {f"sys/fs/cgroup/{folder}/{name}": text for name, text in values.items()}
    assert machine(tmp_path, files) == left


def test_groups_of_version_1(tmp_path: Path):
    folder = "sys/fs/cgroup/memory/box"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/box\n",
        f"{folder}/memory.limit_in_bytes": "3000000\n",
        f"{folder}/memory.usage_in_bytes": "1000000\n",
        f"{folder}/memory.stat": "total_inactive_file 500\n",
    }
    assert machine(tmp_path, files) == 2_000_500


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path):
    values = group("1000", 5000, "inactive_file 0")
    files = {f"sys/fs/cgroup/{name}": text for name, text in values.items()}
    assert machine(tmp_path, {"proc/self/cgroup": "0::/\n", **files}) == 0
