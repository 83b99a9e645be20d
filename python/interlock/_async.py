"""Running async actions and hooks; imported only when a device file has one."""

import asyncio

_CLEANUP_SECONDS = 1.0


class AsyncRunner:
    """One event loop for the life of the worker, because connections opened in ``@on_start`` belong to it.

    It runs only while a hook or an action runs; background tasks stand still in between.
    """

    def __init__(self, link):
        self.link = link
        self.loop = None

    def _event_loop(self):
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        return self.loop

    def run_hook(self, coroutine):
        """Run the coroutine of a hook to its end."""
        return self._event_loop().run_until_complete(coroutine)

    def run_action(self, coroutine, run):
        """Run an async action; a cancellation reaches it at its next ``await``."""
        loop = self._event_loop()
        main = loop.create_task(coroutine)

        def commands_arrived():
            if run.look():
                loop.remove_reader(self.link.commands)
                main.cancel()

        loop.add_reader(self.link.commands, commands_arrived)
        loop.call_soon(commands_arrived)
        try:
            return loop.run_until_complete(main)
        except KeyboardInterrupt:
            self._finish(main)
            raise
        finally:
            if not self.link.in_child:
                loop.remove_reader(self.link.commands)

    def _finish(self, main):
        """Give an interrupted coroutine a moment for its ``finally`` blocks."""
        if not main.done():
            main.cancel()
            try:
                self.loop.run_until_complete(asyncio.wait({main}, timeout=_CLEANUP_SECONDS))
            except RuntimeError:
                pass
        if not main.done():
            self.loop = None
        elif not main.cancelled():
            main.exception()
