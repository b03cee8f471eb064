import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.export import gptq
from mobillama.export.blocks import BLOCK, FORMATS, Q4_0, Q8_0, dequantise

BOTH = pytest.mark.parametrize("block_format", FORMATS.values(), ids=list(FORMATS))


def stored(block_format, matrix: torch.Tensor, importance: torch.Tensor | None = None) -> np.ndarray:
    levels, scales = block_format.quantise(matrix, importance)
    packed = block_format.pack(levels.reshape(-1, BLOCK), scales.flatten())
    return packed.numpy().reshape(len(matrix), -1)


@BOTH
def test_ggufs_own_reader_gives_the_values_that_levels_and_scales_stand_for(block_format):
    matrix = torch.randn(48, 96)
    levels, scales = block_format.quantise(matrix)
    read = gguf.quants.dequantize(stored(block_format, matrix), block_format.type)
    assert (read == dequantise(levels, scales).numpy()).all()


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), power=st.floats(0.3, 4), magnitude=st.sampled_from([1e-4, 1e-2, 1.0, 100.0])
)
def test_the_error_of_no_block_exceeds_ggmls_own(block_format, seed, power, magnitude):
    random = np.random.default_rng(seed)
    values = random.standard_normal((64, BLOCK))
    values = (np.sign(values) * np.abs(values) ** power * magnitude).astype(np.float32)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, block_format.type), block_format.type)
    ours = gguf.quants.dequantize(stored(block_format, torch.from_numpy(values)), block_format.type)
    # ggml stores the half-precision scale but rounds by the exact one: our bound is what can be read back.
    assert (((values - ours) ** 2).sum(1) <= ((values - theirs) ** 2).sum(1) * (1 + 1e-5) + 1e-30).all()


def test_the_searched_scale_is_clearly_better_on_gaussian_weights():
    values = torch.randn(4096, BLOCK)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), Q4_0.type), Q4_0.type)
    ours = gguf.quants.dequantize(stored(Q4_0, values), Q4_0.type)
    assert np.square(values.numpy() - ours).mean() < 0.9 * np.square(values.numpy() - theirs).mean()


def test_importance_moves_the_error_to_where_it_costs_less():
    matrix = torch.randn(64, 128)
    importance = torch.where(torch.arange(128) % 4 == 0, 20.0, 0.05)
    error = [
        torch.square(matrix - torch.from_numpy(gguf.quants.dequantize(stored(Q4_0, matrix, by), Q4_0.type)))
        for by in (None, importance)
    ]
    assert (error[1] * importance).sum() < 0.9 * (error[0] * importance).sum()


@BOTH
@pytest.mark.parametrize("values", [torch.zeros(2, 32), torch.full((2, 32), 3.0), torch.full((2, 32), 1e-9)])
def test_constant_blocks_are_stored_without_surprise(block_format, values):
    read = gguf.quants.dequantize(stored(block_format, values), block_format.type)
    assert np.abs(read - values.numpy()).max() <= 3.0 / 127


def test_q8_levels_stay_symmetric():
    levels, _ = Q8_0.quantise(torch.randn(500, 64))
    assert levels.min() >= -127 and levels.max() <= 127


@BOTH
def test_gptq_loses_less_of_the_output_than_rounding_alone(block_format):
    torch.manual_seed(1)
    # Correlated inputs, as real activations are.
    inputs = torch.randn(2000, 160) @ (torch.eye(160) + 0.5 * torch.randn(160, 160))
    matrix = torch.randn(40, 160)
    hessian = inputs.T @ inputs / len(inputs)
    outputs = inputs @ matrix.T
    error = [
        torch.square(outputs - inputs @ dequantise(*found).T).mean()
        for found in (block_format.quantise(matrix), gptq.quantise(matrix, hessian, block_format))
    ]
    assert error[1] < 0.6 * error[0]


def test_gptq_survives_inputs_that_are_always_zero():
    inputs = torch.randn(50, 64)
    inputs[:, 10:40] = 0
    levels, scales = gptq.quantise(torch.randn(8, 64), inputs.T @ inputs, Q4_0)
    assert torch.isfinite(dequantise(levels, scales)).all()
