"""A pytest plugin (`-p tests.doors.plugin_fake`) that puts the fake session in the real one's place."""

from tests.doors import fake_session

fake_session.install()
