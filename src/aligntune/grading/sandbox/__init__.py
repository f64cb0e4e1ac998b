"""The code sandbox: programs that nobody has read, run and judged where they cannot reach. See `executor`."""

from aligntune.grading.sandbox.executor import CodeResult, SafeCodeExecutor, SandboxUnavailable, TimeoutException

__all__ = ["CodeResult", "SafeCodeExecutor", "SandboxUnavailable", "TimeoutException"]
