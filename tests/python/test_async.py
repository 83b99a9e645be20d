"""How async actions are run: what an interrupt leaves behind in the event loop."""

import asyncio
import os
import unittest

import support  # noqa: F401  (sets the path)

from interlock._async import AsyncRunner


class Link:
    """As much of a link as a runner uses."""

    def __init__(self):
        self.commands, self.host = os.pipe()
        self.divert_interrupt = None
        self.interruptible = True
        self.in_child = False

    def close(self):
        os.close(self.commands)
        os.close(self.host)


class Run:
    """A run that nobody cancels."""

    def look(self):
        return False


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.link = Link()
        self.addCleanup(self.link.close)
        self.runner = AsyncRunner(self.link)
        self.addCleanup(self.runner.event_loop().close)

    def run_action(self, function):
        self.runner.event_loop()
        return self.runner.run_action(function, {}, Run())

    def test_an_interrupt_in_the_last_moment_of_an_action_does_not_stop_the_next(self):
        """It comes when the action is over and the loop has just been told to stop for it."""
        loop = self.runner.event_loop()
        over = []

        async def first():
            over.append(True)

        async def second():
            await asyncio.sleep(0)
            return "the second"

        call_soon = type(loop).call_soon

        def interrupted(callback, *arguments, **options):
            handle = call_soon(loop, callback, *arguments, **options)
            if over:
                raise KeyboardInterrupt
            return handle

        loop.call_soon = interrupted
        with self.assertRaises(KeyboardInterrupt):
            self.run_action(first)
        del loop.call_soon
        self.assertEqual(self.run_action(second), "the second")
        self.assertIs(self.runner.event_loop(), loop)

    def test_an_interrupt_in_an_action_does_not_stop_the_next(self):
        async def first():
            raise KeyboardInterrupt

        async def second():
            return "the second"

        with self.assertRaises(KeyboardInterrupt):
            self.run_action(first)
        self.assertEqual(self.run_action(second), "the second")


if __name__ == "__main__":
    unittest.main()
