"""Libraries that own the loop: each is handed what `pollard.rigl(...)` returned where it takes an optimizer."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pollard
from compatibility.piece import piece
from compatibility.trial import (
    BATCH,
    EXAMPLES,
    STEPS,
    Training,
    X,
    Y,
    dense,
    model_of,
    network,
    require_ordinary,
    weights,
)

with warnings.catch_warnings():
    # What these say while they are imported is of each other.
    warnings.simplefilter("ignore")
    import lightning
    from accelerate import Accelerator
    from skorch import NeuralNetClassifier
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PretrainedConfig,
        PreTrainedModel,
        Trainer,
        TrainingArguments,
    )

FAMILY = "Libraries"
EPOCHS = STEPS * BATCH // EXAMPLES
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
LIGHTNING = (
    (r".*does not have many workers.*", UserWarning),
    (r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*", FutureWarning),
)


def loader():
    return DataLoader(TensorDataset(X, Y), BATCH, shuffle=False)


class Config(PretrainedConfig):
    model_type = "small"


class Wrapped(PreTrainedModel):
    """A network as transformers takes it."""

    config_class = Config

    def __init__(self, config, network=None):
        super().__init__(config)
        self.network = network or Training("static").model
        self.post_init()

    def forward(self, x, labels=None):
        logits = self.network(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return EXAMPLES

    def __getitem__(self, row):
        return {"x": X[row], "labels": Y[row]}


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(**changed):
    return TrainingArguments(
        **{
            "output_dir": "trainer",
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "lr_scheduler_type": "constant",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "log_level": "error",
            "logging_strategy": "no",
            "save_strategy": "no",
            "dataloader_pin_memory": False,
            **changed,
        }
    )


def trainer(training, **changed):
    model = Wrapped(Config(), training.model)
    return InOrder(model=model, args=arguments(**changed), train_dataset=Rows(), optimizers=(training.sparse, None))


@piece(FAMILY, "transformers `Trainer(optimizers=...)`")
def _(method):
    training = Training(method)
    trainer(training).train()
    require_ordinary(training)


@piece(FAMILY, "`Trainer` with gradient accumulation")
def _(method):
    training = Training(method)
    trainer(training, per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2).train()
    require_ordinary(training)


@piece(FAMILY, "`Trainer`, resumed from its checkpoint")
def _(method):
    first = trainer(Training(method), save_strategy="steps", save_steps=STEPS // 2, output_dir=f"resumed-{method}")
    first.args.max_steps = STEPS // 2
    first.train()
    training = Training(method)
    trainer(training, save_strategy="no", output_dir=f"resumed-{method}").train(
        resume_from_checkpoint=f"resumed-{method}/checkpoint-{STEPS // 2}"
    )
    require_ordinary(training)


@piece(FAMILY, "a transformer of transformers: trained, `eval`, against its dense form")
def _(method):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {} if method == "static" else {"every": 2}
    sparse = pollard.sparse_training(model, optimizer, method, density=0.3, steps=4, layers="*", **options)
    tokens, labels = torch.arange(40).view(8, 5) % 20, torch.arange(8) % 2
    for _ in range(4):
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        sparse.step()
    assert (sparse.updates > 0) == (method != "static")
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(model)(tokens).logits, rtol=1e-4, atol=1e-5)


@piece(
    FAMILY,
    "`save_pretrained`, then `pollard.load_sparse`",
    note="`from_pretrained` itself builds dense layers",
)
def _(method):
    model = Wrapped(Config(), model_of(method))
    model.save_pretrained(f"saved-{method}")
    again = pollard.load_sparse(Wrapped(Config(), network()), f"saved-{method}")
    torch.testing.assert_close(weights(again), weights(model))
    torch.testing.assert_close(again(X)["logits"], model(X)["logits"])


class Lit(lightning.LightningModule):
    def __init__(self, training):
        super().__init__()
        self.training_of, self.network = [training], training.model

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return self.training_of[0].sparse


def lightning_trainer(**changed):
    return lightning.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **changed,
        }
    )


@piece(FAMILY, "Lightning: `configure_optimizers`", ignored=LIGHTNING)
def _(method):
    training = Training(method)
    lightning_trainer().fit(Lit(training), loader())
    require_ordinary(training)


@piece(FAMILY, "Lightning with gradient accumulation and clipping", ignored=LIGHTNING)
def _(method):
    training, twin = Training(method), Training(method, storage="masked")
    halves = DataLoader(TensorDataset(X, Y), BATCH // 2, shuffle=False)
    lightning_trainer(accumulate_grad_batches=2, gradient_clip_val=0.5).fit(Lit(training), halves)
    for step in range(STEPS):
        twin.backward(step)
        nn.utils.clip_grad_norm_(twin.model.parameters(), 0.5)
        twin.sparse.step()
    assert training.sparse.updates == twin.sparse.updates
    torch.testing.assert_close(weights(training.model), weights(twin.model))


@piece(FAMILY, "Lightning, resumed from its checkpoint", ignored=LIGHTNING)
def _(method):
    half = lightning_trainer(max_epochs=EPOCHS - 1)
    half.fit(Lit(Training(method)), loader())
    half.save_checkpoint(f"{method}.ckpt")
    training = Training(method)
    lightning_trainer().fit(Lit(training), loader(), ckpt_path=f"{method}.ckpt", weights_only=False)
    require_ordinary(training)


def accelerated(method, batch, accumulate):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    training = Training(method)
    rows = DataLoader(TensorDataset(X, Y), batch, shuffle=False)
    model, stepped, rows = accelerator.prepare(training.model, training.sparse, rows)
    for _ in range(EPOCHS):
        for x, y in rows:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                stepped.step()
                stepped.zero_grad()
    require_ordinary(training)


@piece(FAMILY, "accelerate: `prepare`")
def _(method):
    accelerated(method, BATCH, 1)


@piece(FAMILY, "accelerate: `accumulate`", note="real steps are counted")
def _(method):
    accelerated(method, BATCH // 2, 2)


@piece(FAMILY, "accelerate: `save_state`, `load_state`")
def _(method):
    half = STEPS // 2
    accelerator = Accelerator(cpu=True)
    training = Training(method)
    accelerator.prepare(training.model, training.sparse)
    training.go(range(half))
    accelerator.save_state(f"accelerate-{method}")
    other, again = Accelerator(cpu=True), Training(method)
    other.prepare(again.model, again.sparse)
    other.load_state(f"accelerate-{method}")
    again.go(range(half, STEPS))
    require_ordinary(again)


@piece(FAMILY, "skorch")
def _(method):
    training = Training(method)
    net = NeuralNetClassifier(
        training.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=lambda *_, **__: training.sparse,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        iterator_train__shuffle=False,
        train_split=None,
        verbose=0,
    )
    net.fit(X.numpy(), Y.numpy())
    require_ordinary(training)
    assert (net.predict(X.numpy()) == dense(training.model)(X).argmax(1).numpy()).all()
