"""Fixtures for every test file."""

import tempfile

import jax
import pytest

from tests.browser import Browser, find_browser


def pytest_configure(config):
    """Keeps compilation short, which is most of the time: plain kernels, few optimisations, one cache for a process."""
    from experiments.runner import compile_quickly  # not before: annotations are checked in what is imported later

    compile_quickly()
    config.compilation_cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_unconfigure(config):
    """Removes the cache."""
    config.compilation_cache.cleanup()


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """A PRNG key; split it, never use it twice."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, if there is one."""
    browser = Browser(find_browser(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
