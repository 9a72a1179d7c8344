"""The training loop: steps of the optimizers, measurements between them, going on after a stop.

Source of its shape: karpathy/llama2.c, ``train.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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
from .processes import Processes
from .state import Progress, Record, load_state, save_state

SAVE_SECONDS = 60  # at most this much work is lost when a run is killed


class Trainer:
    """One training run.

    Parameters
    ----------
    config : TrainConfig
        What to train, and how.
    tokenizer : Tokenizer
        The vocabulary.
    train_stories, held_out_stories : sequence of str
        What to learn from, and what to measure on (maybe none).
    output : Output
        What is written. If it holds a state already, the run goes on from there.
    report : callable
        Gets a line of text whenever there is news.
    stop : callable
        Asked after each step; True ends the run there, to go on another time.

    Raises
    ------
    TrainingError
        If the state is damaged or of another run, or the device is not to be had.
    CorpusError
        If there is no story.
    ParameterError
        If the processes cannot share the work evenly.
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
        self._report, self._stop = report, stop
        self._processes = Processes(config.device)
        self._accumulate = self._processes.share(config.gradient_accumulation_steps)
        batch_tokens = config.batch_size * config.max_seq_len
        self._data = Dataset(train_stories, tokenizer, config.max_seq_len, batch_tokens)
        if self._data.n_batches < self._processes.count:
            raise CorpusError(
                f"the stories make {self._data.n_batches} batches,"
                f" expected one for each of the {self._processes.count} processes"
            )
        self._held_out: list[Batch] = []
        if held_out_stories:
            held_out = Dataset(held_out_stories, tokenizer, config.max_seq_len, batch_tokens)
            self._held_out = list(held_out.batches(config.seed, epoch=0))
            if config.eval_iters:
                self._held_out = self._held_out[: config.eval_iters]
        texts = sum(len(story.encode()) for story in held_out_stories)
        measured = sum(batch.n_tokens for batch in self._held_out)
        self._tokens_per_byte = measured / texts if texts else math.nan
        torch.manual_seed(config.seed)
        self.model = Transformer(config.model_config(len(tokenizer)), config.dropout)
        self.model.to(self._processes.device)
        self._optimizers = make_optimizers(self.model, config)
        self._scaler = torch.amp.GradScaler(
            self._processes.device.type, enabled=config.dtype == "float16"
        )
        self._parts = {"model": self.model, "scaler": self._scaler}
        self._parts |= {type(each).__name__: each for each in self._optimizers}
        self._corpus = _fingerprint(tokenizer, train_stories, held_out_stories)
        self.progress = Progress(0, 0, 0, 0.0, 0, math.inf, [])
        if output.state.exists():
            self.progress = load_state(output.state, config, self._corpus, self._parts)
        if not self._processes.first:  # other activations to drop than the first process's
            torch.manual_seed(config.seed + self.progress.step + self._processes.rank)

    def run(self) -> bool:
        """Train until ``max_iters``: True if it was reached, False if ``stop`` came before."""
        config, progress = self.config, self.progress
        self._announce()
        model = self._step_model()
        batches = self._batches()
        began = saved = perf_counter()
        earlier = progress.seconds
        mark = (progress.tokens, began)  # where the log last measured the speed
        losses: list[float] = []
        while progress.step < config.max_iters:
            losses.append(self._step(model, batches))
            now = perf_counter()
            progress.seconds = earlier + now - began
            stopping = self._processes.any(self._stop())
            if config.log_interval and progress.step % config.log_interval == 0:
                self._log(losses[-1], (progress.tokens - mark[0]) / (now - mark[1]))
                mark = (progress.tokens, now)
            done = progress.step == config.max_iters
            due = config.eval_interval and progress.step % config.eval_interval == 0
            if done or due:
                self._measure(sum(losses) / len(losses))
                losses.clear()
            if done or due or stopping or now - saved > SAVE_SECONDS:
                self._save()
                saved = perf_counter()
            if stopping and not done:
                return False
        return True

    def close(self) -> None:
        """Part from the other processes, if there are any."""
        self._processes.close()

    def _announce(self) -> None:
        config, progress = self.model.config, self.progress
        if progress.step:
            self._say(f"going on at step {progress.step} of {self.config.max_iters}")
        self._say(
            f"{config.n_params:,} parameters, {self._data.n_tokens:,} tokens to train on,"
            f" {self._processes.device.type}"
            + (f" x {self._processes.count}" if self._processes.count > 1 else "")
        )

    def _step_model(self) -> nn.Module:
        """The model as it is trained: compiled, and its gradients averaged over the processes."""
        model: nn.Module = self.model
        if self.config.compile and not self._can_compile():
            self._say("no C++ compiler found: training without torch.compile, slower")
        elif self.config.compile:
            model = torch.compile(model, dynamic=True)  # type: ignore[assignment]
        return self._processes.wrap(model)

    def _can_compile(self) -> bool:
        """On a CPU ``torch.compile`` writes C++."""
        compilers = os.environ.get("CXX", "c++"), "g++", "clang++"
        return self._processes.device.type != "cpu" or any(map(shutil.which, compilers))

    def _batches(self) -> Iterator[Batch]:
        """This process's batches, from where the run stands, without end."""
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

    def _step(self, model: nn.Module, batches: Iterator[Batch]) -> float:
        """One step of the optimizers; returns the loss."""
        config, progress = self.config, self.progress
        rate = config.learning_rate_at(progress.step)
        total = torch.zeros((), device=self._processes.device)
        model.train()
        for micro in range(self._accumulate):
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
                f"the loss of step {progress.step} is {value}, expected a finite one;"
                " a lower learning_rate may help"
            )
        return value

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        device = self._processes.device
        dtype = getattr(torch, self.config.dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss: torch.Tensor = model(
                torch.from_numpy(batch.tokens).to(device),
                torch.from_numpy(batch.targets).to(device),
            )
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on the held-out stories, nats per token; NaN where there are none."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in self._held_out:
            total += self._loss(self.model, batch).item() * batch.n_tokens
            count += batch.n_tokens
        return total / count if count else math.nan

    def _measure(self, train_loss: float) -> None:
        """Measure on the held-out stories; keep the weights if they are the best yet."""
        if not self._processes.first:
            return
        config, progress = self.config, self.progress
        loss = self.held_out_loss()
        bits = loss / math.log(2) * self._tokens_per_byte
        passes = progress.tokens / self._data.n_tokens
        progress.history.append(
            Record(progress.step, progress.seconds, passes, train_loss, loss, bits)
        )
        line = f"step {progress.step}: {passes:.2f} passes, training loss {train_loss:.4f}"
        if self._held_out:
            line += f", held-out loss {loss:.4f} ({bits:.4f} bits per byte)"
        self._say(line)
        keep = config.always_save_checkpoint or not loss >= progress.best  # NaN: always
        if keep:
            progress.best = loss
            self.output.write_best(self.model.config, self.model.tensors())
        self.output.write_history(progress.history)
        if config.sample_interval and progress.step % config.sample_interval == 0:
            self._say(f"sample: {self.output.sample(config.seed)}")

    def _log(self, loss: float, speed: float) -> None:
        step, steps = self.progress.step, self.config.max_iters
        minutes = (steps - step) * self.progress.seconds / step / 60
        self._say(
            f"{step}/{steps} loss {loss:.4f} lr {self.config.learning_rate_at(step - 1):.2e}"
            f" {speed:,.0f} tok/s, {minutes:.0f} min left"
        )

    def _save(self) -> None:
        if self._processes.first:
            save_state(self.output.state, self.config, self._corpus, self.progress, self._parts)

    def _say(self, line: str) -> None:
        if self._processes.first:
            self._report(line)


def _fingerprint(tokenizer: Tokenizer, *texts: Sequence[str]) -> str:
    """A hash of stories and vocabulary, to notice if a run is to go on with others."""
    digest = hashlib.sha256()
    for stories in texts:
        for story in stories:
            digest.update(story.encode() + b"\0")
        digest.update(b"\1")
    for token in range(len(tokenizer)):
        digest.update(tokenizer.piece(token) + b"\0")
    return digest.hexdigest()
