import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "imports",
    [
        "import mobillama.model",
        pytest.param("from transformers import AutoModel; import mobillama.model", marks=pytest.mark.slow),
        pytest.param("import transformers; import mobillama.model", marks=pytest.mark.slow),
        pytest.param("from mobillama.model.modeling import MobiLlamaModel", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_the_model_in_any_order_of_imports(imports):
    script = (
        f"{imports}\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('mobillama', vocab_size=8, hidden_size=8, intermediate_size=8,\n"
        "    num_hidden_layers=1, num_attention_heads=2)\n"
        "print(type(AutoModel.from_config(config)).__name__)\n"
        "print(type(AutoModelForCausalLM.from_config(config)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MobiLlamaModel", "MobiLlamaForCausalLM"]
