from temper.core.measurement import megabytes


def test_sizes_have_three_digits() -> None:
    written = [megabytes(each) for each in (0, 11_312, 185_000, 1_094_000, 105_400_000)]
    assert written == ["0 MB", "0.0113 MB", "0.185 MB", "1.09 MB", "105 MB"]
