"""How the model goes on from a prompt, for the record of a run."""

import torch

from mobillama.data import Corpus
from mobillama.model import MobiLlamaForCausalLM

from .recipe import SampleSection


@torch.inference_mode()
def complete(model: MobiLlamaForCausalLM, corpus: Corpus, prompt: str, section: SampleSection) -> str:
    """Return the text that ``model`` writes after ``prompt``; the same text each time from equal weights."""
    device = next(model.parameters()).device
    ids = [corpus.end_of_text_id, *corpus.tokenizer.encode(prompt).ids]
    random = torch.get_rng_state()
    torch.manual_seed(0)
    model.eval()
    choice = (
        {"do_sample": True, "temperature": section.temperature}
        if section.temperature
        else {"do_sample": False}
    )
    written = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        torch.tensor([ids], device=device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
        max_new_tokens=section.tokens,
        eos_token_id=corpus.end_of_text_id,
        pad_token_id=corpus.end_of_text_id,
        use_cache=True,
        **choice,
    )
    model.train()
    torch.set_rng_state(random)
    new = [token for token in written[0, len(ids) :].tolist() if token != corpus.end_of_text_id]
    return corpus.tokenizer.decode(new)
