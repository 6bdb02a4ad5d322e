"""What sentence-transformers wrote beside a model: which modules make a vector of its states.

Owns modules.json, the configurations of pooling and of dense layers, sentence_bert_config.json and
config_sentence_transformers.json. Refuses modules and settings that no graph here expresses, each
by its name. Reference: Reimers and Gurevych, Sentence-BERT (2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from appliance.errors import CheckpointError
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

MODULES = "modules.json"
LIBRARY_CONFIG = "config_sentence_transformers.json"
TRANSFORMER_CONFIG = "sentence_bert_config.json"

Pooling = Literal["mean", "cls", "last"]
_FIRST, _DENSE, _LAST = ("Transformer", "Pooling"), "Dense", "Normalize"
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_OTHER_FLAGS = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""As newer versions of the library say it."""
Activation = Literal["Identity", "Tanh", "Sigmoid", "ReLU", "GELU"]
_ACTIVATIONS: Mapping[str, Activation] = {
    f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}": name
    for name in get_args(Activation)
}
_USUAL = "torch.nn.modules.activation.Tanh"


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer between the pooled vector and the one that is given out.

    Attributes:
        name: of its tensors, without what follows the last dot.
    """

    name: str
    inner: int
    outer: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class Sentence:
    """How token states become one vector.

    Attributes:
        max_length: tokens of a text; None if the files set no limit.
        dense: what follows the pooling, in its order.
    """

    pooling: Pooling
    normalize: bool
    max_length: int | None
    dense: tuple[Dense, ...] = ()


def module_kinds(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The classes that modules.json names, in their order. Raises CheckpointError."""
    return tuple(str(module.get("type")).rsplit(".", 1)[-1] for module in _modules(checkpoint))


def read_sentence(checkpoint: Checkpoint, hidden: int) -> Sentence:
    """Read all these files; token states have `hidden` numbers. Raises CheckpointError."""
    kinds, modules = module_kinds(checkpoint), _modules(checkpoint)
    normalize = kinds[-1:] == (_LAST,)
    between = kinds[len(_FIRST) : -1 if normalize else None]
    if kinds[: len(_FIRST)] != _FIRST or not set(between) <= {_DENSE}:
        raise CheckpointError(
            f"{MODULES}: the modules {', '.join(kinds)} are not supported",
            hint="a sentence encoder is Transformer, Pooling and, optionally, Dense and Normalize",
        )
    path, *folders = (_folder(module) for module in modules[1 : 2 + len(between)])
    if modules[0].get("path") != "":
        raise CheckpointError(f"{MODULES}: the transformer is not at the checkpoint's top")
    library = read_library_config(checkpoint)
    library.ignore("similarity_fn_name")  # how callers compare vectors
    library.expect("model_type", "SentenceTransformer")
    library.finish()
    return Sentence(
        pooling=_read_pooling(checkpoint.settings(f"{path}/config.json"), hidden),
        normalize=normalize,
        max_length=read_max_length(checkpoint),
        dense=_read_dense(checkpoint, folders, hidden),
    )


def read_library_config(checkpoint: Checkpoint) -> Settings:
    """config_sentence_transformers.json but for what is not the same for every kind of model."""
    has = checkpoint.has(LIBRARY_CONFIG)
    settings = checkpoint.settings(LIBRARY_CONFIG) if has else Settings({}, LIBRARY_CONFIG)
    settings.ignore("__version__", "prompts")  # a prompt is what a caller writes before a text
    settings.expect("default_prompt_name")
    return settings


def read_max_length(checkpoint: Checkpoint, task: str = "feature-extraction") -> int | None:
    """Tokens of a text at most, as sentence_bert_config.json has it; None if it is silent."""
    if not checkpoint.has(TRANSFORMER_CONFIG):
        return None
    settings = checkpoint.settings(TRANSFORMER_CONFIG)
    if settings.flag("do_lower_case", False) and not _lowers_case(checkpoint):
        settings.expect("do_lower_case", False)  # the tokenizer's normalizer has to do that
    settings.expect("transformer_task", task)
    settings.ignore("modality_config", "module_output_name")  # follow from the task
    length = settings.integer("max_seq_length") if "max_seq_length" in settings else None
    settings.finish()
    return length


def _modules(checkpoint: Checkpoint) -> list[dict[str, object]]:
    modules = checkpoint.json(MODULES)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise CheckpointError(f"{MODULES} is not a list of modules")
    return modules


def _folder(module: Mapping[str, object]) -> str:
    path = module.get("path")
    if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/"):
        raise CheckpointError(f"{MODULES}: the path {path!r} is not inside the checkpoint")
    return path


def _read_dense(checkpoint: Checkpoint, folders: Sequence[str], width: int) -> tuple[Dense, ...]:
    """The dense layers, the first of which takes `width` numbers."""
    layers = []
    for folder in folders:
        settings = checkpoint.settings(f"{folder}/config.json")
        settings.expect("in_features", width)
        for end in ("module_input_name", "module_output_name"):
            settings.expect(end, "sentence_embedding")
        settings.expect("activation_function", *_ACTIVATIONS)
        outer, bias = settings.integer("out_features"), settings.flag("bias", True)
        said = settings.text("activation_function", _USUAL)
        settings.finish()
        name = f"{checkpoint.include(folder)}linear"
        layers.append(Dense(name, width, outer, bias, _ACTIVATIONS[said]))
        width = outer
    return tuple(layers)


def _lowers_case(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer's normalizer lowers the case of what it is given."""
    normalizer = checkpoint.document("tokenizer.json").get("normalizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", ())] if isinstance(normalizer, dict) else []
    return any(step.get("lowercase") or step.get("type") == "Lowercase" for step in steps)


def _read_pooling(settings: Settings, hidden: int) -> Pooling:
    settings.ignore("include_prompt")  # there is none here
    for key in ("word_embedding_dimension", "embedding_dimension"):
        settings.expect(key, hidden)
    chosen = [pooling for key, pooling in _FLAGS.items() if settings.flag(key, False)]
    if "pooling_mode" in settings:
        settings.expect("pooling_mode", *_NAMES)
        chosen.append(_NAMES[settings.text("pooling_mode")])
    for key in _OTHER_FLAGS:
        settings.expect(f"pooling_mode_{key}", False)
    settings.finish()
    if len(chosen) != 1:
        raise CheckpointError("the pooling module must choose one of mean, cls and lasttoken")
    return chosen[0]
