"""The view of a defended network along another route through its defences."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier


@dataclass(frozen=True, kw_only=True)
class AlongRoute:
    """Runs every defence that knows a route along it, and the others as deployed.

    Attributes:
        route: how the defences are to run.
    """

    route: Route
    is_random: ClassVar[bool] = False

    @property
    def keeps_values(self) -> bool:
        """Whether the route leaves all values as they are."""
        return self.route.keeps_values

    def __call__(self, model: Classifier) -> Classifier:
        """Return the view.

        Raises:
            ValueError: no defence of the network knows the route.
        """
        points = self._points(model)
        if not points:
            raise ValueError(self._lack())
        return cast(Classifier, cast(Any, model).routed(dict.fromkeys(points, self.route)))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence knows the route, if none does."""
        return None if self._points(model) else self._lack()

    def _points(self, model: Classifier) -> list[str]:
        defenses = getattr(model, "defenses", {})
        return [point for point, defense in defenses.items() if self.route.uses <= defense.routes]

    def _lack(self) -> str:
        asked = self.route.uses - {"f_tilde"} or self.route.uses  # as deployed is not worth telling
        return f"no defence of the network knows the route {', '.join(sorted(asked))}"
