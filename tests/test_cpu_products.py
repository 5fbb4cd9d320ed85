"""Products by either of torch's libraries: the same values, and no choice by time."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")


def test_the_kernel_depends_on_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice by time would give other bytes in another run."""
    from edgeft import cpu_products

    x, weight = torch.randn(5, 24), torch.randn(16, 24)
    for capability, onednn in (("AVX512", True), ("AVX2", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        has = torch.backends.mkldnn.is_available()
        assert cpu_products.onednn_is_faster() is (onednn and has)
        for rows in (x, torch.randn(24, 5).t()):  # strided, too
            result = cpu_products.product(rows, weight)
            torch.testing.assert_close(result, rows @ weight.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
def test_linear_layers_compute_the_same(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeft import cpu_products

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    plain = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Linear(16, 8, bias=False))
    module = copy.deepcopy(plain)
    cpu_products.use_in_linears(module)
    with torch.inference_mode():
        for shape in ((3, 24), (2, 3, 24)):
            x = torch.randn(shape)
            torch.testing.assert_close(module(x), plain(x), rtol=1e-5, atol=1e-5)
    half = module.to(torch.bfloat16)
    assert half(torch.randn(3, 24).bfloat16()).dtype == torch.bfloat16
