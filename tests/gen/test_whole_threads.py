"""The thread of a pipeline run as a whole: it ends whatever happens, and what is a thread's own goes with it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from gen.generator import Generator
from gen.models.bridge.generic.handover import Handover, Returned, StepRequest
from gen.models.bridge.generic.run import PipelineRun
from samplers.registry import get_solver
from samplers.sample import sample
from tests.gen.pipelines import SIZE, stable_diffusion

CALL = {"prompt": "a cat", "num_inference_steps": 3, "height": SIZE, "width": SIZE}


@pytest.fixture
def pipe() -> Any:
    made = stable_diffusion()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("fewstep")]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


def test_one_side_runs_at_a_time():
    order = []

    def function(desk):
        for i in range(3):
            order.append(("inside", i, desk.ask(i)))
        return "done"

    handover = Handover(function, "fewstep test")
    said = handover.begin()
    for i in range(3):
        assert said == StepRequest(i)
        order.append(("outside", i))
        said = handover.resume(10 + i)
    assert said == Returned("done")
    assert order == [entry for i in range(3) for entry in (("outside", i), ("inside", i, 10 + i))]
    handover.close()
    assert not handover.alive


def test_errors_inside_a_thread_are_raised_outside_and_close_ends_a_waiting_one():
    def broken(desk):
        desk.ask(1)
        raise KeyError("inside")

    handover = Handover(broken, "fewstep test")
    handover.begin()
    with pytest.raises(KeyError, match="inside"):
        handover.resume(None)
    closed = []

    def waiting(desk):
        try:
            desk.ask(1)
        except Exception:  # which a library may catch
            closed.append("caught")
        finally:
            closed.append("ended")

    handover = Handover(waiting, "fewstep test")
    handover.begin()
    handover.close()
    assert closed == ["ended"] and not handover.alive


def test_a_forgotten_run_ends(pipe):
    own = pipe.scheduler
    run = PipelineRun(pipe, CALL, get_solver("euler")).__enter__()
    forgotten, thread = weakref.ref(run), run._worker._thread
    assert thread.is_alive() and pipe.scheduler is not own
    del run
    gc.collect()
    thread.join(5)
    assert forgotten() is None and not thread.is_alive() and pipe.scheduler is own


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_run_that_is_left_by_an_exception_ends(pipe, error):
    """Of a callback's, or Ctrl-C."""
    own, generator = pipe.scheduler, Generator.from_pipeline(pipe)

    def stop(*_):
        raise error("stop")

    with pytest.raises(error, match="stop"):
        generator(**CALL, seed=1, progress=False, callback_on_step_end=stop)
    assert pipe.scheduler is own and not pipe.unet._forward_pre_hooks


def test_ctrl_c_while_the_pipeline_runs(pipe):
    """The main thread waits for the other one, and is woken."""
    import signal

    own, generator = pipe.scheduler, Generator.from_pipeline(pipe)
    main = threading.main_thread().ident

    def interrupt(module, args):
        signal.pthread_kill(main, signal.SIGINT)

    hook = pipe.unet.register_forward_pre_hook(interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever other tests of this process left
    try:
        with pytest.raises(KeyboardInterrupt):
            generator(**CALL, seed=1, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
        hook.remove()
    assert pipe.scheduler is own and not pipe.unet._forward_pre_hooks


def test_a_running_pipeline_is_not_called_again(pipe):
    """Neither by us nor by itself, from a callback: it would wait for itself."""
    generator, caught = Generator.from_pipeline(pipe), []

    def again(*_):
        for call in (lambda: generator(**CALL, seed=1, progress=False), lambda: pipe(**CALL)):
            with pytest.raises((ValueError, RuntimeError), match="is running already") as error:
                call()
            caught.append(error)

    call = {**CALL, "seed": 1, "progress": False, "output_type": "pt"}
    made = generator(**call, callback_on_step_end=again).images
    assert len(caught) == 6 and torch.equal(made, generator(**call).images)


def test_errors_inside_the_pipeline_are_ours_with_the_cause(pipe):
    generator = Generator.from_pipeline(pipe)
    with pytest.raises(
        ValueError, match="StableDiffusionPipeline failed: `height` and `width` have to be divisible by 8"
    ) as caught:
        generator(**{**CALL, "height": 30}, seed=1, progress=False)
    assert isinstance(caught.value.__cause__, ValueError)

    def broken(*_, **__):
        raise AssertionError("the network broke")

    pipe.unet.register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match="failed: the network broke"):
        generator(**CALL, seed=1, progress=False)


def test_a_pipeline_that_never_steps_is_refused(pipe):
    class Quick(type(pipe)):
        def __call__(self, prompt=None, num_inference_steps=3, output_type="pil", generator=None):
            return None

    pipe.__class__ = Quick
    with pytest.raises(ValueError, match="returned without a step of its scheduler"):
        Generator.from_pipeline(pipe)("a cat", seed=1, progress=False)


def test_memory_that_runs_out_halves_the_batch(pipe):
    generator, sizes = Generator.from_pipeline(pipe), []

    def full(module, args):
        sizes.append(len(args[0]))
        if len(args[0]) > 2:  # of two rows each, with the pipeline's guidance
            raise torch.OutOfMemoryError("out of memory")

    handle = pipe.unet.register_forward_pre_hook(full)
    call = {**CALL, "prompt": ["a cat", "a dog"], "output_type": "pt", "progress": False, "seed": 1}
    found = generator(**call, batch_size=2).images
    handle.remove()
    assert sizes[0] == 4 and set(sizes[1:]) == {2}
    torch.testing.assert_close(found, generator(**call).images, atol=1e-5, rtol=0)


def test_what_is_a_threads_own_goes_with_the_pipeline(pipe):
    """Gradients, inference mode, autocast, the default device, context variables."""
    import contextvars

    variable, seen = contextvars.ContextVar("variable", default="none"), {}

    def look(module, args):
        seen["inference"], seen["grad"] = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        seen["autocast"] = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen["variable"] = variable.get()

    pipe.text_encoder.register_forward_pre_hook(look)
    generator = Generator.from_pipeline(pipe)
    generator(**CALL, seed=1, progress=False)
    assert seen == {"inference": False, "grad": False, "autocast": False, "variable": "none"}
    variable.set("here")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        generator(**CALL, seed=1, progress=False)
    assert seen == {"inference": True, "grad": False, "autocast": torch.bfloat16, "variable": "here"}


def test_two_generators_in_threads(pipe):
    """Of one pipeline they wait for one another; the pictures are those of calls one after another."""
    other = stable_diffusion()
    other.set_progress_bar_config(disable=True)
    generators = [Generator.from_pipeline(one) for one in (pipe, pipe, other)]
    call = {**CALL, "output_type": "pt", "progress": False}
    expected = [generator(**call, seed=i).images for i, generator in enumerate(generators)]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        found[i] = generators[i](**call, seed=i).images

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(found[i], expected[i]) for i in range(3))


def test_offload_hooks_and_changed_dtypes(pipe):
    """Weights that come when they are needed, and go: accelerate's hooks, as `enable_sequential_cpu_offload` sets them."""
    from accelerate import cpu_offload

    generator = Generator.from_pipeline(pipe)
    call = {**CALL, "seed": 3, "progress": False, "output_type": "pt"}
    plain = generator(**call).images
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        cpu_offload(part, torch.device("cpu"))
    assert next(pipe.unet.parameters()).device.type == "meta"
    offloaded = Generator.from_pipeline(pipe)(**call, sampler="ddim").images
    torch.testing.assert_close(offloaded, plain, atol=1e-5, rtol=0)
    ours = Generator.from_pipeline(pipe)(**call, sampler="ddim", guidance="cfg").images
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_half_precision_keeps_the_samplers_state_in_float32(pipe):
    """The pipeline sees its own dtype; steps are taken in float32, so pictures are near those of float32."""
    call = {**CALL, "seed": 3, "progress": False, "output_type": "pt"}
    exact = Generator.from_pipeline(pipe)(**call).images
    pipe.unet.to(torch.bfloat16), pipe.text_encoder.to(torch.bfloat16), pipe.vae.to(torch.bfloat16)
    generator = Generator.from_pipeline(pipe)
    made = generator(**call, sampler="dpmpp_2m")
    assert made.recipes[0].machine.dtype == "bfloat16" and made.images.dtype == torch.float32
    given = {**CALL, "generator": torch.Generator().manual_seed(3)}
    with PipelineRun(pipe, given, get_solver("euler")) as run:
        assert run.x.dtype == torch.float32
        x = sample(run.denoiser, run.solver, run.x, run.levels)
        run.finish(x)
    assert x.dtype == torch.float32
    assert (generator(**call).images - exact).abs().mean() < 0.05


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantised_network_runs(pipe):
    """int8 weights of PyTorch's own dynamic quantisation."""
    pipe.unet = torch.ao.quantization.quantize_dynamic(pipe.unet, {torch.nn.Linear}, dtype=torch.qint8)
    own = pipe(**CALL, generator=torch.Generator().manual_seed(3), output_type="np").images
    call = {**CALL, "seed": 3, "progress": False, "output_type": "np"}
    assert abs(Generator.from_pipeline(pipe)(**call).images - own).max() < 1e-4
