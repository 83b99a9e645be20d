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
        self.interrupted = False

    def event_loop(self):
        """The loop; a new one after the old had to be given up."""
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        elif self.interrupted:
            # An interrupt may come when a task is over and the loop has been told to stop for it. Nobody took that stop, and it
            # would leave the next action behind half done. One turn takes it.
            self.loop.stop()
            self.loop.run_forever()
        self.interrupted = False
        return self.loop

    def run_hook(self, coroutine):
        """Run the coroutine of a hook to its end."""
        return self.event_loop().run_until_complete(coroutine)

    def run_action(self, function, arguments, run):
        """Run an async action; a cancellation reaches it at its next ``await``.

        An interrupt is raised only inside of a task, where the action's own code runs. While the loop itself runs it
        becomes a cancellation, because an exception there would leave the loop half changed.
        """
        link, loop, main = self.link, self.loop, None

        def divert_interrupt():
            if asyncio.current_task(loop) is not None:
                return False
            if main is not None:
                loop.call_soon_threadsafe(main.cancel)
            return True

        def commands_arrived():
            if run.look():
                loop.remove_reader(link.commands)
                main.cancel()

        link.divert_interrupt = divert_interrupt
        try:
            main = loop.create_task(function(**arguments))
            loop.add_reader(link.commands, commands_arrived)
            loop.call_soon(commands_arrived)
            return loop.run_until_complete(main)
        except KeyboardInterrupt:
            self.interrupted = True
            self._finish(main)
            raise
        finally:
            link.interruptible = False
            if not link.in_child:
                loop.remove_reader(link.commands)
            link.divert_interrupt = None

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
