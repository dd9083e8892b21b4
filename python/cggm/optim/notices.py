"""What a training loop may have forgotten, said once."""

from __future__ import annotations

from torch import nn

from ..model.multimodal import MultimodalModel
from ..user_warning import warn_user

_FORGOTTEN = 3  # so many steps in a row without balance() are no accident


class Notices:
    """Warns about steps that do not do what the wrapper was made for.

    Args:
        model: its encoders know which forward passes ran, its classifiers whether they learn.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self._model = model
        self._unbalanced = 0  # steps in a row without balance()
        self._said: set[str] = set()

    def at_step(self, balanced: bool) -> None:
        """Notice that `balance()` never comes, or not for every micro-batch.

        Args:
            balanced: whether a balanced loss is pending in this step.
        """
        encoders = self._model.encoders
        forgotten = not balanced and encoders.have_run()
        runs = encoders.unbalanced_runs()
        if runs and balanced:
            self._say(
                "runs",
                f"{runs} forward pass(es) of this step did not go through balance(): if their losses went backward, "
                "they trained the model jointly. Call balance() once for each micro-batch, and run passes that train "
                "nothing under torch.no_grad()",
            )
        self._unbalanced = self._unbalanced + 1 if forgotten else 0
        if self._unbalanced == _FORGOTTEN:
            self._say(
                "balance",
                f"the encoders ran in {_FORGOTTEN} steps without balance(), so that the model trains jointly: call "
                "loss = optimizer.balance(loss, target) before backward(), or set optimizer.active = False",
            )

    def at_balance(self, classifiers: bool) -> None:
        """Notice that modality dropout cannot act, or that classifiers do not learn.

        Args:
            classifiers: whether there are unimodal classifiers.
        """
        model = self._model
        if model.encoders.mask is not None and not model.module.training:
            self._say(
                "mode",
                "the model is in evaluation mode, in which modality dropout drops nothing: call model.train(), and "
                "eval() on what must not change, as batch normalization",
            )
        children = model.classifiers.named_children() if classifiers else ()
        frozen = [name for name, module in children if _is_frozen(module)]
        if frozen:
            self._say(
                "frozen",
                f"the unimodal classifiers of {frozen} are frozen: model.requires_grad_(False) freezes them, too; call "
                "model.unimodal_classifiers.requires_grad_(True)",
            )

    def _say(self, topic: str, message: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            warn_user(message)


def _is_frozen(module: nn.Module) -> bool:
    return not next((p.requires_grad for p in module.parameters()), True)
