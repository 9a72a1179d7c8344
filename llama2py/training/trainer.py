"""The training loop: optimizer steps, measurements between them, and stopping and continuing.

Source of its structure: karpathy/llama2.c, ``train.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import nn

from ..errors import CorpusError, TrainingError
from ..tokenizers.tokenizer import Tokenizer
from .config import TrainConfig
from .dataset import Batch, Dataset
from .network import Transformer
from .optimizer import make_optimizers
from .output import Output
from .pretrained import initialize, load_teacher
from .processes import Processes
from .progress import Progress, Record
from .state import Parts, load_state, save_state

SAVE_SECONDS = 60  # a killed run loses at most this much work


class Trainer:
    """One training run.

    Parameters
    ----------
    config : TrainConfig
        What to train, and how.
    tokenizer : Tokenizer
        The vocabulary.
    train_stories, held_out_stories : sequence of str
        The stories to train on, and the stories to measure on (maybe none).
    output : Output
        The files to write.
    report : callable
        Called with one line of text per event.
    stop : callable
        Called between batches. Once it returns True the run saves its state and ends.

    Attributes
    ----------
    progress : Progress
        How far the run is.

    Raises
    ------
    TrainingError
        If the device is not available, or the model does not fit into memory.
    CorpusError
        If there are too few stories.
    ParameterError
        If the processes cannot share the work evenly.
    CheckpointError, ConfigError
        If the checkpoint of ``init_from`` or ``teacher`` cannot be read or has another shape.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer,
        train_stories: Sequence[str],
        held_out_stories: Sequence[str],
        output: Output,
        report: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.output = config, output
        self._tokenizer, self._held_out_stories = tokenizer, held_out_stories
        self._report, self._stop = report, stop
        self._processes = Processes(config.device)
        self._accumulate = self._processes.share(config.gradient_accumulation_steps)
        self._say("encoding the stories")
        batch_tokens = config.batch_size * config.max_seq_len
        self._data = Dataset(train_stories, tokenizer, config.max_seq_len, batch_tokens)
        if self._data.n_batches < self._processes.count:
            raise CorpusError(
                f"{self._processes.count} processes need a batch each,"
                f" but the stories make {self._data.n_batches} in all"
            )
        self._held_out: list[Batch] = []
        if held_out_stories:
            held_out = Dataset(held_out_stories, tokenizer, config.max_seq_len, batch_tokens)
            self._held_out = list(held_out.batches(config.seed, epoch=0))
            if config.eval_iters:
                self._held_out = self._held_out[: config.eval_iters]
        torch.manual_seed(config.seed)
        with _memory_errors():
            self.model = Transformer(
                config.model_config(len(tokenizer)),
                config.dropout,
                config.teacher_share,
                config.teacher_temperature,
            )
            self.model.to(self._processes.device)
            self._teacher: Transformer | None = None
            if config.teacher and config.teacher_share:
                teacher = load_teacher(config.teacher, tokenizer, config.max_seq_len)
                self._teacher = teacher.to(self._processes.device)
        self._optimizers = make_optimizers(self.model, config)
        self._scaler = torch.amp.GradScaler(
            self._processes.device.type, enabled=config.dtype == "float16"
        )
        self._parts = Parts(self.model, self._optimizers, self._scaler)
        self._fingerprint = _fingerprint(tokenizer, train_stories, held_out_stories)
        self.progress = Progress(0, 0, 0, 0.0, 0, math.inf, [])
        self._measured_step = 0  # of the last measurement

    def start(self, fresh: bool) -> None:
        """Continue the run that the output holds, or begin a new one.

        Parameters
        ----------
        fresh : bool
            Begin a new run whatever the output holds.

        Raises
        ------
        TrainingError
            If the state is damaged or belongs to another run. Nothing is changed then.
        """
        config, processes = self.config, self._processes
        if self.output.has_state() and not fresh:
            self.progress, max_iters = load_state(
                self.output.state, config, self._fingerprint, self._parts
            )
            if self.progress.history:
                self._measured_step = self.progress.history[-1].step
            self._say(f"continuing at step {self.progress.step} of {config.max_iters}")
            self._compare_schedules(max_iters)
        elif config.init_from:
            initialize(self.model, config.init_from)
            self._say(f"starting from {config.init_from}")
        if not processes.first:  # processes drop different activations
            torch.manual_seed(config.seed + self.progress.step + processes.rank)
        else:
            if fresh and self.output.has_state():
                self._say(f"deleting the earlier run, {self.output.path} included")
            self.output.begin(self._tokenizer, self._held_out_stories, fresh)
        processes.any(False)  # wait until the first process has prepared the output

    def run(self) -> bool:
        """Train up to ``max_iters``; return whether it was reached before ``stop``.

        Raises
        ------
        TrainingError
            If a loss is not finite, memory runs out, or a file cannot be written.
        """
        with _memory_errors():
            return self._run()

    def _run(self) -> bool:
        config, progress = self.config, self.progress
        if progress.step >= config.max_iters and not self._is_measurement_due():
            return True
        self._say(
            f"{self.model.config.n_params:,} parameters, {self._data.n_tokens:,} training tokens,"
            f" {self._processes.device.type}"
            + (f" x {self._processes.count}" if self._processes.count > 1 else "")
        )
        model = self._step_model() if progress.step < config.max_iters else self.model
        batches = self._batches()
        began = saved = perf_counter()
        earlier = progress.seconds
        mark = (progress.tokens, began)  # where the log last measured the speed
        while True:
            if self._is_measurement_due():  # also after a stop within the measurement
                measured = self._measure()
                self._save()
                saved = perf_counter()
                if not measured:
                    return False
            if progress.step >= config.max_iters:
                return True
            loss = self._step(model, batches)
            now = perf_counter()
            progress.seconds = earlier + now - began
            if (
                loss is not None
                and config.log_interval
                and progress.step % config.log_interval == 0
            ):
                self._log(loss, (progress.tokens - mark[0]) / (now - mark[1]))
                mark = (progress.tokens, now)
            stopping = self._processes.any(loss is None or self._stop())
            if stopping or now - saved > SAVE_SECONDS:
                self._save()
                saved = perf_counter()
            if stopping:
                return False

    def close(self) -> None:
        """Leave the group of processes, if there are several."""
        self._processes.close()

    def _compare_schedules(self, earlier_max_iters: int) -> None:
        """Report a jump of the learning rate: another ``max_iters`` stretches the whole cosine."""
        config, step = self.config, self.progress.step
        before = replace(config, max_iters=earlier_max_iters).learning_rate_at(step)
        now = config.learning_rate_at(step)
        if step < config.max_iters and before != now:
            self._say(
                f"max_iters is now {config.max_iters} instead of {earlier_max_iters}:"
                f" the learning rate changes from {before:.2e} to {now:.2e} at this step"
            )

    def _step_model(self) -> nn.Module:
        """Return the model to train with: compiled, and with gradients averaged over processes."""
        model: nn.Module = self.model
        if self.config.compile:
            compiled = self._compile()
            if self._processes.any(isinstance(compiled, str)):
                reason = compiled if isinstance(compiled, str) else "it fails in another process"
                self._say(
                    f"torch.compile does not work here ({reason}): training without it, slower"
                )
            elif not isinstance(compiled, str):
                model = compiled
        return self._processes.wrap(model)

    def _compile(self) -> nn.Module | str:
        """Compile the model by running one batch, which changes nothing; or return why it fails."""
        device = self._processes.device
        compilers = os.environ.get("CXX", "c++"), "g++", "clang++"
        if device.type == "cpu" and not any(map(shutil.which, compilers)):
            return "no C++ compiler found"
        self._say("compiling the model (--no-compile starts at once, but trains slower)")
        batch = next(self._data.batches(self.config.seed, self.progress.epoch))
        try:
            compiled: nn.Module = torch.compile(self.model, dynamic=True)  # type: ignore[assignment]
            compiled.train()
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._loss(compiled, batch).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch.compile, the compiler and the loader raise anything
            return " ".join(str(error).split())[:150]
        finally:
            self.model.zero_grad()
        return compiled

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batches from the run's place in the data, without end."""
        progress, processes = self.progress, self._processes
        while True:
            group: list[Batch] = []  # one for each process
            for index, batch in enumerate(self._data.batches(self.config.seed, progress.epoch)):
                if index < progress.batch:
                    continue
                group.append(batch)
                if len(group) == processes.count:
                    progress.batch = index + 1
                    yield group[processes.rank]
                    group = []
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _step(self, model: nn.Module, batches: Iterator[Batch]) -> float | None:
        """Run one optimizer step and return its loss.

        Return None if ``stop`` ends the step early. The run is then where it was before the step.
        """
        config, progress = self.config, self.progress
        rate = config.learning_rate_at(progress.step)
        before = progress.epoch, progress.batch, progress.tokens, torch.get_rng_state()
        total = torch.zeros((), device=self._processes.device)
        model.train()
        for micro in range(self._accumulate):
            if micro and self._processes.count == 1 and self._stop():
                progress.epoch, progress.batch, progress.tokens, random = before
                torch.set_rng_state(random)
                self.model.zero_grad()
                return None
            batch = next(batches)
            last = micro == self._accumulate - 1
            with contextlib.nullcontext() if last else self._processes.without_sync(model):
                loss = self._loss(model, batch) / self._accumulate
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            progress.tokens += batch.n_tokens * self._processes.count
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            self._scaler.step(optimizer)
            optimizer.zero_grad()
        self._scaler.update()
        progress.step += 1
        value = total.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of step {progress.step} is {value}; a lower learning_rate may help"
            )
        progress.loss_sum += value
        progress.n_losses += 1
        return value

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss in nats per token; in training it includes the teacher's part."""
        device = self._processes.device
        dtype = getattr(torch, self.config.dtype)
        tokens = torch.from_numpy(batch.tokens).to(device)
        teacher_logits: torch.Tensor | None = None
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if self._teacher is not None and model.training:
                with torch.no_grad():
                    teacher_logits = self._teacher(tokens)
            loss: torch.Tensor = model(
                tokens, torch.from_numpy(batch.targets).to(device), teacher_logits
            )
        return loss

    @torch.no_grad()
    def _held_out_loss(self) -> tuple[float, float] | None:
        """Return the held-out loss in nats per token and bits per byte; None if ``stop`` ends it.

        Both are NaN if no story is held out.
        """
        self.model.eval()
        nats, n_tokens, n_bytes = 0.0, 0, 0
        for batch in self._held_out:
            if self._processes.count == 1 and self._stop():
                return None
            nats += self._loss(self.model, batch).item() * batch.n_tokens
            n_tokens += batch.n_tokens
            n_bytes += batch.n_bytes
        if not n_tokens:
            return math.nan, math.nan
        return nats / n_tokens, nats / math.log(2) / n_bytes

    def _is_measurement_due(self) -> bool:
        config, step = self.config, self.progress.step
        if step == self._measured_step:
            return False
        at_interval = config.eval_interval > 0 and step % config.eval_interval == 0
        return at_interval or step >= config.max_iters

    def _measure(self) -> bool:
        """Measure, and keep the weights if they are the best so far; return False if stopped."""
        config, progress = self.config, self.progress
        self._measured_step = progress.step
        if not self._processes.first:
            return True
        measured = self._held_out_loss()
        if measured is None:
            return False
        loss, bits = measured
        if self._held_out and not math.isfinite(loss):
            raise TrainingError(
                f"the held-out loss of step {progress.step} is {loss};"
                " a lower learning_rate may help"
            )
        # A state of an earlier version lacks the losses before the stop, maybe all of them.
        train_loss = progress.loss_sum / max(1, progress.n_losses)
        progress.loss_sum, progress.n_losses = 0.0, 0
        passes = progress.tokens / self._data.n_tokens
        progress.history.append(
            Record(progress.step, progress.seconds, passes, train_loss, loss, bits)
        )
        line = f"step {progress.step}: {passes:.2f} passes, training loss {train_loss:.4f}"
        if self._held_out:
            line += f", held-out loss {loss:.4f} ({bits:.4f} bits per byte)"
        self._say(line)
        if config.always_save_checkpoint or not self._held_out or loss < progress.best:
            progress.best = loss if self._held_out else math.inf
            self.output.write_best(self.model.config, self.model.tensors())
        self.output.write_history(progress.history)
        if config.sample_interval and progress.step % config.sample_interval == 0:
            self._say(f"sample: {self.output.sample(config.seed)}")
        return True

    def _log(self, loss: float, speed: float) -> None:
        step, steps = self.progress.step, self.config.max_iters
        seconds = (steps - step) * self.progress.seconds / step
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        self._say(
            f"{step}/{steps} loss {loss:.4f} lr {self.config.learning_rate_at(step - 1):.2e}"
            f" {speed:,.0f} tok/s, {left} left"
        )

    def _save(self) -> None:
        if self._processes.first:
            save_state(
                self.output.state, self.config, self._fingerprint, self.progress, self._parts
            )

    def _say(self, line: str) -> None:
        if self._processes.first:
            self._report(line)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn PyTorch's ways to run out of memory into one error."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(
            "out of memory; a smaller batch_size, max_seq_len or model needs less"
        ) from None


def _fingerprint(tokenizer: Tokenizer, *texts: Sequence[str]) -> str:
    """Return a hash of the vocabulary and the stories, to recognize the same run."""
    digest = hashlib.sha256()
    for stories in texts:
        for story in stories:
            digest.update(story.encode() + b"\0")
        digest.update(b"\1")
    for token in range(len(tokenizer)):
        digest.update(tokenizer.piece(token) + b"\0")
    return digest.hexdigest()
