"""The kernels that notebooks are run with; it takes the ``book`` extra to import this."""

from jupyter_client.manager import AsyncKernelManager


class UninterruptedKernelManager(AsyncKernelManager):
    """Ends kernels without interrupting them first.

    When a notebook has run to its end there is nothing to interrupt; on a busy machine the signal
    would reach the kernel while it still tidies up, which it reports as an error.
    """

    async def _async_interrupt_kernel(self) -> None:
        if not self.shutting_down:
            await super()._async_interrupt_kernel()
