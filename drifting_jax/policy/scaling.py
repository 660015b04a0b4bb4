"""The scalings of a policy's observations and actions."""

from typing import Any, NamedTuple

from drifting_jax.errors import UserError
from drifting_jax.steps.scaling import Scaling


class Scalings(NamedTuple):
    """The scalings of a policy: its observations [d_o] and its actions [d_a]."""

    observation: Scaling
    action: Scaling

    def record(self) -> dict[str, dict[str, list[float]]]:
        """What JSON keeps of them, exactly."""
        return {name: scaling.record() for name, scaling in self._asdict().items()}

    @classmethod
    def from_record(cls, record: Any, origin: object) -> "Scalings":
        """The inverse of `record`.

        Raises:
          UserError: it is no such record.
        """
        if not isinstance(record, dict) or not set(cls._fields) <= set(record):
            raise UserError(f"{origin} does not hold the scaling of a policy")
        return cls(*(Scaling.from_record(record[name], origin) for name in cls._fields))
