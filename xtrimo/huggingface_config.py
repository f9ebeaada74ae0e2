"""The config of a GLM as transformers stores it: the GLMConfig whole, under `glm`, beside what a task adds."""

from typing import Any

from transformers import PreTrainedConfig

from xtrimo.config import GLMConfig, preset
from xtrimo.huggingface_files import MODEL_TYPE

DEFAULT = "glm-1m"


class XtrimoConfig(PreTrainedConfig):
    """What a GLM is, and which labels a head of it knows. `config.json` of a directory of transformers.

        XtrimoConfig(glm=preset("glm-8m").to_dict(), num_labels=3)

    Raises:
        ConfigError: fields of a GLM that cannot be.
        TypeError: a field of a GLM that is missing or unknown.
    """

    model_type = MODEL_TYPE

    def __init__(self, glm: dict[str, Any] | None = None, **settings: Any) -> None:
        self.glm = (preset(DEFAULT) if glm is None else GLMConfig.from_dict(glm)).to_dict()
        super().__init__(**settings)

    @property
    def glm_config(self) -> GLMConfig:
        """The shape of the GLM, and what it can do."""
        return GLMConfig.from_dict(self.glm)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.glm_config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Numbers in the state of a word."""
        return self.glm_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.glm_config.num_layers

    @property
    def num_attention_heads(self) -> int:
        """Heads of a block."""
        return self.glm_config.num_heads

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest training row; longer input runs."""
        return self.glm_config.max_length
