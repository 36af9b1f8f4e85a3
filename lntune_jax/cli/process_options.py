"""What can be set of a run in several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .help import shown


@dataclass(frozen=True)
class Processes:
    """One run in several processes, each with devices of its own."""

    distributed: bool = False
    """Join the other processes of the run: each is started with the same command."""
    coordinator: Annotated[str | None, shown("found by the launcher", "HOST:PORT")] = None
    """Where process 0 listens; else $JAX_COORDINATOR_ADDRESS, or what SLURM, GKE or a TPU says."""
    num_processes: Annotated[int | None, shown("found by the launcher", "INT")] = None
    """How many there are; else $JAX_NUM_PROCESSES."""
    process_id: Annotated[int | None, shown("found by the launcher", "INT")] = None
    """Which of them this is, from 0; else $JAX_PROCESS_ID."""
    mesh: Annotated[str, shown("data=DEVICES", "AXIS=SIZE,...")] = ""
    """All devices along the axes data, fsdp and tensor, for example data=2,fsdp=4."""
    heartbeat_seconds: int = 100
    """A process that is not heard of for so long counts as lost, and the run ends."""
