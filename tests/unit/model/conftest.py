"""What the tests of this package share."""

import pytest
import torch
from small_models import VOCABULARY, make_model

from mobillama.model import MobiLlamaForCausalLM


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> MobiLlamaForCausalLM:
    """A shared-FFN model, in evaluation mode, with logits far from uniform."""
    return make_model()


@pytest.fixture
def input_ids() -> torch.Tensor:
    """Two sequences of 12 tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
