"""The CUDA kernels without a GPU: compiled by NVRTC for every architecture, run on the host for numbers."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulated_cuda import Emulator, compile_for_host, poison
from hypothesis import given
from hypothesis import strategies as st
from test_bi_wkv import BARS, double_sum, draw, error, float64_scan, with_gradients
from torch import Tensor

from model import bi_wkv as dispatch
from model import bi_wkv_cuda as module
from model.bi_wkv import bi_wkv

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100"]
LENGTHS = [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000, 4097]
KERNELS = {"summarise", "carry", "scan", "summarise_grad", "scan_grad"}


class Emulated(torch.autograd.Function):
    """The host half of model/bi_wkv_cuda.py with the emulator in the place of the GPU."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        y, carries, top = module.forward(*inputs)
        ctx.save_for_backward(*inputs, carries, top)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return module.backward(grad.contiguous(), *ctx.saved_tensors)  # type: ignore[attr-defined]


def run(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    wide = torch.promote_types(k.dtype, torch.float32)
    w, u = (x.to(wide).expand(k.shape[0], -1).contiguous() for x in (w, u))
    y: Tensor = Emulated.apply(w, u, k, v)
    return y


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """bi_wkv by the CUDA sources, in memory that was full of NaN."""
    monkeypatch.setattr(module, "launch", emulator)
    poison(monkeypatch)
    return run


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keys", [80.0, 3.0])
def test_float32_agrees_with_the_double_sum(
    emulated: Callable[..., Tensor], length: int, keys: float
) -> None:
    w, u, k, v = draw(2 if length < 4000 else 1, length, 6 if length < 4000 else 2)
    inputs = [w, u, k * keys / 80, v]
    grad = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    true = with_gradients(double_sum, inputs, grad)
    for (name, bar), left, right in zip(
        BARS.items(), with_gradients(emulated, inputs, grad), true, strict=True
    ):
        assert error(left, right) <= bar, name
        scale = right.abs().max().clamp(min=1e-6)
        assert (left.double() - right).abs().max() <= bar * scale, name


def test_a_long_sequence_agrees_with_a_float64_scan(emulated: Callable[..., Tensor]) -> None:
    inputs = draw(1, 307200, 1)
    grad = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1))
    got = with_gradients(emulated, inputs, grad)
    for (name, bar), left, right in zip(BARS.items(), got, float64_scan(*inputs, grad), strict=True):
        assert error(left, right) <= bar, name


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 300),
    channels=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_any_shape(emulator: Emulator, batch: int, length: int, channels: int, seed: int) -> None:
    inputs = [x.double() for x in draw(batch, length, channels, seed)]
    grad = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", emulator)
        poison(patch)
        got = with_gradients(run, inputs, grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKVFUSION_KERNEL", "reference")
        true = with_gradients(bi_wkv, inputs, grad)
    for left, right in zip(got, true, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9 * float(right.abs().max().clamp(min=1)))


@pytest.mark.parametrize("decay", [-200.0, 200.0])
@pytest.mark.parametrize("length", [5, 700])
def test_extreme_decays_stay_exact(emulated: Callable[..., Tensor], decay: float, length: int) -> None:
    _, u, k, v = draw(1, length, 3)
    inputs = [torch.tensor([decay, 1.0, decay]), u, k, v]
    grad = torch.ones_like(k)
    true = with_gradients(double_sum, inputs, grad)
    for left, right in zip(with_gradients(emulated, inputs, grad), true, strict=True):
        assert torch.isfinite(left).all()
        torch.testing.assert_close(left.double(), right.double(), rtol=1e-5, atol=1e-5)


def test_gradcheck(emulated: Callable[..., Tensor]) -> None:
    w, u, k, v = (x.double() for x in draw(2, 21, 3))
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (w, u, k / 20, v)])


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precisions(emulated: Callable[..., Tensor], dtype: torch.dtype, bar: float) -> None:
    w, u, k, v = draw(2, 300, 8)
    inputs = [w, u, (k / 20).to(dtype), v.to(dtype)]
    grad = torch.randn(k.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    true = with_gradients(double_sum, inputs, grad)
    got = with_gradients(emulated, inputs, grad)
    assert [x.dtype for x in got] == [dtype, torch.float32, torch.float32, dtype, dtype]
    for left, right in zip(got, true, strict=True):
        assert error(left, right) <= bar


@pytest.mark.parametrize("length", [3, 130, 1000])
def test_the_order_of_threads_does_not_matter(
    emulator: Emulator, emulated: Callable[..., Tensor], length: int
) -> None:
    inputs = draw(2, length, 20)
    results = []
    for emulator.falling in (False, True):
        results.append(with_gradients(run, inputs, torch.ones_like(inputs[2])))
    emulator.falling = False
    for rising, falling in zip(*results, strict=True):
        assert torch.equal(rising, falling)


def test_absent_tokens_and_nan(emulated: Callable[..., Tensor]) -> None:
    w, u, k, v = draw(1, 170, 4)
    absent = torch.full((1, 300, 4), -float("inf"))
    longer = emulated(w * 470 / 170, u, torch.cat([k, absent], 1), torch.cat([v, torch.randn(1, 300, 4)], 1))
    torch.testing.assert_close(longer[:, :170], emulated(w, u, k, v), rtol=1e-4, atol=1e-4)
    v[0, 40, 2] = float("nan")
    y = emulated(w, u, k, v)
    assert torch.isnan(y[0, :, 2]).all()
    assert torch.isfinite(y[0, :, [0, 1, 3]]).all()


def test_memory_beside_inputs_and_outputs_is_small(
    emulated: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(1, 4096, 16)
    held: list[int] = []
    launch = module.launch

    def watch(*arguments: object) -> None:
        tensors = {x.data_ptr(): x.nbytes for x in (*always, *arguments) if isinstance(x, Tensor)}
        held.append(sum(tensors.values()))
        launch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "launch", watch)
    for dtype in (torch.float32, torch.bfloat16):
        always = [x.to(dtype) for x in inputs[2:]]
        y, carries, top = module.forward(inputs[0][None], inputs[1][None], *always)
        assert max(held) <= 1.1 * 3 * y.nbytes
        always += [torch.ones_like(y), carries]
        held.clear()
        module.backward(always[2], inputs[0][None], inputs[1][None], *always[:2], carries, top)
        assert max(held) <= 1.1 * 5 * y.nbytes
        held.clear()


def nvrtc_is_missing() -> str | None:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:
        return str(error).splitlines()[0]
    return None


needs_nvrtc = pytest.mark.skipif(
    nvrtc_is_missing() is not None, reason=f"no NVRTC here: {nvrtc_is_missing()}"
)


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    return tmp_path / "rwkvfusion" / "kernels"


@needs_nvrtc
@pytest.mark.parametrize("dtype", module.STORAGE, ids=module.STORAGE.get)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_a_gpu(cached: Path, architecture: str, dtype: torch.dtype) -> None:
    machine_code = bytes(module.compile_for(architecture, dtype).code)
    assert machine_code.startswith(b"\x7fELF")
    assert all(b".text." + name.encode() in machine_code for name in KERNELS)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_sources_are_read_as_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    assert "λ" in module.source.__wrapped__()


@needs_nvrtc
def test_compiles_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bytes(module.compile_for("sm_90", torch.float32).code)
    stored = files(cached)
    assert first in stored.values()
    assert bytes(module.compile_for("sm_90", torch.float32).code) == first
    assert files(cached) == stored
    source = module.source()
    monkeypatch.setattr(module, "source", lambda: source.replace("LEAST_KEY = -1e30f", "LEAST_KEY = -2e30f"))
    assert bytes(module.compile_for("sm_90", torch.float32).code) != first
    assert len(files(cached)) == len(stored) + 1


@needs_nvrtc
def test_a_mistake_in_the_sources_is_told_and_not_cached(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "source", lambda: "__global__ void scan( {")
    with pytest.raises(Exception, match="expected"):
        module.compile_for("sm_90", torch.float32)
    assert files(cached) == {}


@needs_nvrtc
def test_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "file"))
    assert bytes(module.compile_for("sm_90", torch.float32).code)


def test_sources_are_found_in_a_checkout_and_in_a_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "model" / "bi_wkv_cuda.py"))
    with pytest.raises(FileNotFoundError, match=r"no bi_wkv\.cu"):
        module.source_folder()
    for folder in (tmp_path / "cuda", tmp_path / "model" / "_cuda"):  # the wheel's comes first
        folder.mkdir(parents=True)
        (folder / "bi_wkv.cu").touch()
        assert module.source_folder() == folder


def test_every_launch_covers_the_tensor() -> None:
    size = module.constants()
    for shape in [(1, 1, 1), (2, 4097, 5), (3, 128, 16), (1, 307200, 64), (70000, 64, 40)]:
        batch, length, channels = shape
        (grid, block), (whole, wide) = module.grids(torch.empty(shape, device="meta"))
        assert grid[0] * size["CHUNK"] >= batch * length
        assert grid[1] * block[0] >= channels
        assert block[0] <= size["LANES"]
        assert whole[0] == batch
        assert whole[1] * wide[0] >= channels
        assert max(grid[1], whole[1]) < 65536


def test_cuda_asked_for_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVFUSION_KERNEL", "cuda")
    with pytest.raises(ValueError, match="given a tensor on cpu"):
        bi_wkv(*draw(1, 4, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    forget()
    with (
        pytest.warns(UserWarning, match="no GPU"),
        pytest.raises(ValueError, match=r"cannot run here: .*no GPU"),
    ):
        dispatch._kernel("cuda", 0, torch.float32)
    forget()


def test_auto_falls_back_with_one_warning_that_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVFUSION_KERNEL", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def fail(*_: object) -> None:
        raise RuntimeError("a log\nbi_wkv(1): error: no\nand more")

    monkeypatch.setattr(module, "_kernel", fail)
    forget()
    with pytest.warns(UserWarning, match=r"slow reference: .*RuntimeError: bi_wkv\(1\): error: no\)$"):
        assert dispatch._kernel("cuda", 0, torch.float32) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch._kernel("cuda", 0, torch.float32) == "reference"
    forget()


def forget() -> None:
    dispatch._why_no_cuda.cache_clear()
    module.why_unusable.cache_clear()


def test_the_emulator_notices_diverging_barriers(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = 'using S = STORAGE; extern "C" __global__ void scan() { if (threadIdx.x) __syncthreads(); }'
    monkeypatch.setattr(module, "source", lambda: source)
    compile_for_host(tmp_path, "float")
    with pytest.raises(AssertionError, match="numbers of barriers"):
        Emulator(tmp_path)("scan", torch.zeros(1), (1, 1), (2, 1))
