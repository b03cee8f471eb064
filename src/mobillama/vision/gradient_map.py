"""Where in an image an answer came from: the gradient of its log-probability at every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .images import Pixels

# The strongest few pixels would leave all others dark.
BRIGHTEST_PERCENT = 99.5


def gradient_map(
    model: Any, square: Pixels, prompt: Sequence[int], answer: Sequence[int]
) -> NDArray[np.float32]:
    """Return how much each pixel of a square (3, S, S) weighs in an answer, (S, S) from 0 to 1.

    Arguments:
        model: a loaded LLaVA.
        prompt: token ids with one image token.
        answer: the ids that followed.

    Source: Simonyan et al. 2013, section 3: the largest absolute gradient over the channels.
    """
    device, dtype = model.device, model.dtype
    pixels = torch.from_numpy(square[None]).to(device, dtype).requires_grad_()
    rows = model.get_image_features(pixels, return_dict=True).pooler_output[0]
    place = list(prompt).index(model.config.image_token_id)
    embed = model.get_input_embeddings()
    before, after = (
        embed(torch.tensor(ids, dtype=torch.long, device=device))
        for ids in (prompt[:place], [*prompt[place + 1 :], *answer])
    )
    inputs = torch.cat([before, rows, after]).unsqueeze(0)
    logits = model(inputs_embeds=inputs, logits_to_keep=len(answer) + 1).logits[0, :-1]
    targets = torch.tensor(answer, dtype=torch.long, device=device)
    score = logits.float().log_softmax(-1).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, pixels)
    weights = gradient[0].abs().amax(0).float().cpu().numpy()
    return (weights / max(float(np.percentile(weights, BRIGHTEST_PERCENT)), 1e-30)).clip(0, 1)
