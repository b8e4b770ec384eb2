import pytest

from analytic.errors import UllageError
from analytic.formats.table import find_format


@pytest.mark.parametrize(
    ("name", "shape", "allocations"),
    [
        ("bfloat16", (3, 5), (30,)),  # 15 * 2
        ("bnb-int8", (11008, 4096), (45_088_768, 44_032)),  # 11008 * 4096; 11008 * 4
        ("bnb-nf4", (11008, 4096), (22_544_384, 2_818_048, 64)),  # n/2; n/64 * 4; 16 floats
        ("bnb-nf4", (3, 5), (8, 4, 64)),  # (15 + 1) // 2; one block of 64
        # n/2; n/64; ceil(n/64/256) * 4 = 2752 * 4; one float; 16 floats; 256 floats
        ("bnb-nf4-dq", (11008, 4096), (22_544_384, 704_512, 11_008, 4, 64, 1024)),
        ("fp8-128x128", (1536, 7168), (11_010_048, 2_688)),  # 12 * 56 tiles * 4
        ("fp8-128x128", (576, 7168), (4_128_768, 1_120)),  # ceil(576/128) = 5; 5 * 56 * 4
        ("fp8-128x128", (256, 4096, 7168), (7_516_192_768, 1_835_008)),  # 256 * 32 * 56 * 4
        ("mxfp4", (32, 2880, 5760), (265_420_800, 16_588_800)),  # n/2; n/32
    ],
)
def test_bytes_of_one_weight(name: str, shape: tuple[int, ...], allocations: tuple[int, ...]) -> None:
    assert find_format(name).allocations(shape) == allocations


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UllageError, match="int3"):
        find_format("int3")
