"""Networks to be measured whole: a model and the inputs that it is called on, of the user's own or built in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from pollard import networks
from pollard.arguments import nearest
from pollard.copies import copied
from pollard.errors import InvalidInput
from pollard.networks import FUNCTION, Ends
from pollard.networks.own import accepts, call_named
from pollard.pruning.batches import mapped, signals, tensors

RETURNED = "(model, inputs): an nn.Module, with a tensor, a tuple, or a dict of keyword arguments"
TOKENS = (32, 32)
BATCH = 32


@dataclass(frozen=True)
class Workload:
    """A model and the inputs of one call, which runs it in inference mode."""

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """What the model returns."""
        with torch.inference_mode():
            return self.model(*self.args, **self.kwargs)

    @property
    def input_shapes(self) -> list[list[int]]:
        """The shape of each tensor among the inputs."""
        return [list(each.shape) for each in tensors((self.args, dict(self.kwargs)))]

    def of(self, model: nn.Module) -> Self:
        """The same call of another model."""
        return replace(self, model=model)

    def to(self, dtype: torch.dtype) -> Self:
        """A copy for inference, its floating-point numbers and those of its inputs in `dtype`.

        Raises InvalidInput for a model that cannot be copied.
        """
        model = copied(self.model, f"as {self.name!r} in another precision")

        def cast(each: Tensor) -> Tensor:
            return each.detach().to(dtype) if each.is_floating_point() else each

        args, kwargs = mapped((self.args, dict(self.kwargs)), cast)
        return replace(self, model=model.to(dtype).eval(), args=args, kwargs=kwargs)


def outputs(result: Any) -> dict[str, Tensor]:
    """The floating-point tensors of what a model returned, by number: in tuples, dicts, dataclasses or attributes.

    >>> list(outputs({"logits": torch.ones(2), "ids": torch.ones(2).long()}))
    ['output 0']
    """
    found = signals(result) or signals(getattr(result, "__dict__", None))
    return {f"output {index}": each for index, each in enumerate(found)}


def known() -> str:
    """The names of networks that can be measured, for help and messages."""
    return f"{', '.join(NETWORKS)}, {networks.known()}"


def is_known(name: str) -> bool:
    """Whether `name` is that of a network, or is written as a function of the user's.

    >>> is_known("encoder"), is_known("vgg-16-x0.5"), is_known("my_models:small"), is_known("1024x1024x128")
    (True, True, True, False)
    """
    if name in NETWORKS or ":" in name:
        return True
    try:
        networks.require_name(name)
    except InvalidInput:
        return False
    return True


def load(model: str, tokens: tuple[int, int] | None = None, images: tuple[int, ...] | None = None) -> Workload:
    """The network that `model` names: built in, or a function `package.module:function`, which is called.

    The function takes nothing and returns a model, in any state, and its inputs. The current folder is among those that modules
    are found in. tokens: batch and length of the inputs of a built-in network of sequences; images: batch, channels,
    height and width of those of one of images. Weights and inputs are drawn with seed 0.
    Raises InvalidInput where there is no such function, what it returns is something else, or the model does not take the
    inputs on the CPU.

    >>> load("lenet-5-caffe").input_shapes
    [[32, 1, 28, 28]]
    """
    if not is_known(model):
        own = f"Write a function that takes nothing and returns {RETURNED}; then name it, as in my_models:small."
        raise InvalidInput(f"network {model!r}", known(), nearest(model, [*NETWORKS, *networks.ARCHITECTURES]) or own)
    takes = "--tokens" if model in NETWORKS else None if ":" in model else "--images"
    for option, given in {"--tokens": tokens, "--images": images}.items():
        if given is not None and option != takes:
            raise InvalidInput(
                f"{option.strip('-')} {'x'.join(map(str, given))} for {model!r}",
                f"{takes}, or none" if takes else "no sizes: the function returns its own inputs",
                f"Leave {option} out.",
            )
    if model in NETWORKS:
        made = NETWORKS[model](*(tokens or TOKENS))
    else:
        made = _called(model) if ":" in model else _of_images(model, images)
    return _tried(_understood(model, made))


def _called(model: str) -> Any:
    def call(function: Callable[..., Any]) -> Any:
        if not accepts(function):
            raise InvalidInput(
                f"{model}{inspect.signature(function)}",
                "a function that can be called without arguments",
                "Give the arguments defaults, or write a function that calls it.",
            )
        return function()

    return call_named(model, RETURNED, call)


def _of_images(model: str, images: tuple[int, ...] | None) -> tuple[nn.Module, Tensor]:
    usual = networks.usual_ends(model)
    batch, *shape = images or (BATCH, *usual.input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = networks.build(model, Ends(tuple(shape), usual.classes))
    generator = torch.Generator().manual_seed(0)
    return made, torch.randn(batch, *shape, generator=generator, dtype=torch.float32, device="cpu")


def _understood(name: str, made: Any) -> Workload:
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        kinds = ", ".join(type(each).__name__ for each in made) if isinstance(made, tuple) else type(made).__name__
        raise InvalidInput(f"({kinds}) from {name}", RETURNED, "Return both, in this order.")
    model, inputs = made
    if isinstance(inputs, Mapping):
        return Workload(name, model, kwargs=dict(inputs))
    if isinstance(inputs, Tensor):
        return Workload(name, model, (inputs,))
    if isinstance(inputs, tuple):
        return Workload(name, model, inputs)
    raise InvalidInput(
        f"inputs of type {type(inputs).__name__} from {name}", RETURNED, "Return a tuple, for a list tuple(inputs)."
    )


def _tried(workload: Workload) -> Workload:
    """`workload`, called once, which makes lazy layers too."""
    given = tensors((workload.args, dict(workload.kwargs)))
    held = [*workload.model.parameters(), *workload.model.buffers(), *given]
    elsewhere = {str(each.device) for each in held if each.device.type != "cpu"}
    if elsewhere:
        raise InvalidInput(
            f"a model or inputs of {workload.name!r} on {', '.join(sorted(elsewhere))}",
            "both on the CPU, whose kernels are measured",
            "Return model.cpu() and inputs.cpu().",
        )
    training = [module for module in workload.model.modules() if module.training]
    try:
        with torch.no_grad():
            found = outputs(workload.model.eval()(*workload.args, **workload.kwargs))
    except Exception as error:  # whatever a module of the user's raises
        raise InvalidInput(
            f"inputs that {workload.name!r} fails on: {type(error).__name__}: {error}",
            "inputs as model(*inputs) takes them, or model(**inputs) for a dict",
            "Call the model on them in Python first.",
        ) from error
    finally:
        for module in training:
            module.training = True
    if not found:
        raise InvalidInput(
            f"a model of {workload.name!r} whose outputs hold no floating-point tensor",
            "outputs to hold the sparse network's against",
            "Return a model that gives logits or features, in a tensor, tuple, dict or dataclass.",
        )
    return workload


def _encoder(batch: int, length: int) -> tuple[nn.Module, dict[str, Tensor]]:
    try:
        from transformers import BertConfig, BertModel  # optional: it builds this network alone
    except ImportError as error:
        raise InvalidInput(
            "the network 'encoder' without transformers, which builds it",
            "transformers installed",
            f"pip install transformers, or name a function of your own, {FUNCTION}.",
        ) from error
    config = BertConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=max(512, length),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, length), generator=generator, dtype=torch.int64, device="cpu")
    return model, {"input_ids": tokens}


# Networks of sequences: name -> what makes it for a batch of sequences of a length.
NETWORKS: dict[str, Callable[[int, int], tuple[nn.Module, Any]]] = {"encoder": _encoder}
