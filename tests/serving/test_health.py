import socket

from toy_model import replying

from piston.serving.health import main


def test_a_server_that_is_well_is_0(live):
    assert main([f"http://127.0.0.1:{live(replying('x')).port}/health"]) == 0


def test_a_server_that_is_not_is_1_with_one_line(live, capsys, monkeypatch):
    monkeypatch.setattr("piston.serving.engine_thread.EngineThread.problem", lambda _: "hangs")
    assert main([f"http://127.0.0.1:{live(replying('x')).port}/health"]) == 1
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert main([f"http://127.0.0.1:{silent.getsockname()[1]}/health"]) == 1
    assert "error: HTTP Error 503" in capsys.readouterr().err
