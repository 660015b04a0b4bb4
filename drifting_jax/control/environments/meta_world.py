"""Meta-World: fifty tasks of a simulated robot arm, each with a scripted expert.

An observation [39] has hand, gripper and objects now and one step earlier, and the goal. An action
[4] in [-1, 1] moves the hand by up to a centimetre along each axis, and closes the gripper. Goal
and objects differ from episode to episode. A task counts as solved at its first success.
"""

import atexit
import os
import sys
import warnings
from ctypes.util import find_library
from typing import Any

import numpy as np

from drifting_jax.control.environments.environment import Expert, Step
from drifting_jax.errors import UserError

_SIDE = 180  # pixels of a picture
_CAMERA, _CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)


class MetaWorld:
    """One task; `name` as Meta-World has it, such as "reach-v3".

    Raises:
      UserError: Meta-World is not installed, or has no such task.
    """

    observation_size = 39
    action_size = 4
    max_steps = 500
    steps_after_success = 20

    def __init__(self, name: str) -> None:
        make, self._make_expert = _find(name)
        self._environment = make(seed=0)
        # Else all episodes have the goal of the first, or goals of NumPy's global generator.
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self._environment.model.camera(_CAMERA).pos[:] = _CAMERA_POSITION
        self._renderer: Any = None

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of a seed and returns its first observation [39] float32."""
        self._environment.seed(seed)
        observation, _ = self._environment.reset()
        return observation.astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Carries out an action [4], cut to [-1, 1]."""
        observation, _, _, _, info = self._environment.step(np.clip(action, -1, 1))
        success = bool(info["success"])
        return Step(observation.astype(np.float32), success, success, "solved" if success else "")

    def draw(self) -> np.ndarray:
        """Returns a picture [180, 180, 3] uint8, drawn without a display.

        Raises:
          UserError: MuJoCo cannot draw on this machine.
        """
        if self._renderer is None:
            self._renderer = _open_renderer(self._environment.model)
        self._renderer.update_scene(self._environment.data, camera=_CAMERA)
        return self._renderer.render()[::-1, ::-1].copy()  # this camera hangs upside down

    def expert(self, seed: int) -> Expert:
        """Returns Meta-World's scripted policy of the task; it needs no seed."""
        policy = self._make_expert()

        def act(observation: np.ndarray) -> np.ndarray:
            with warnings.catch_warnings():  # about actions above 1, which are cut here
                warnings.simplefilter("ignore")
                action = policy.get_action(observation)
            return np.clip(action, -1, 1).astype(np.float32)

        return act


def _find(name: str) -> tuple[Any, Any]:
    """The classes of a task and of its expert."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        # Read when MuJoCo is imported, which fails where the library is missing.
        os.environ.setdefault("MUJOCO_GL", "egl" if find_library("EGL") else "disable")
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as makers
        from metaworld.policies import ENV_POLICY_MAP as experts
    except ImportError as error:
        raise UserError(
            f"metaworld:{name} needs the package {error.name}: pip install -e '.[control]'"
        ) from None
    if name not in experts:
        raise UserError(f"Meta-World has no task {name!r}; it has {', '.join(sorted(experts))}")
    return makers[f"{name}-goal-observable"], experts[name]


def _open_renderer(model: Any) -> Any:
    """A renderer of MuJoCo without shadows and mirrors, which take most of the time on a CPU."""
    import mujoco

    if os.environ.get("MUJOCO_GL") == "disable":
        raise UserError(
            "MuJoCo cannot draw here: install libEGL, or set MUJOCO_GL to osmesa or glfw"
        )
    try:
        renderer = mujoco.Renderer(model, _SIDE, _SIDE)
        atexit.register(renderer.close)  # later, OpenGL is gone
    except Exception as error:  # of OpenGL, by many names
        raise UserError(
            f"MuJoCo cannot draw here ({error}): set MUJOCO_GL to egl, osmesa or glfw"
        ) from None
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = False
    return renderer
