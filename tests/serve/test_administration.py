"""Adapters that are added, replaced and removed over HTTP: the token, the one folder, and requests that run."""

import json
import os
import shutil
import threading

import httpx
import pytest
from openai import OpenAI

from pypeft_fast.serve.administration import Administration
from pypeft_fast.serve.limits import Limits
from tests.serve.conftest import eventually, save_adapter

CHAT = "/v1/chat/completions"
TOKEN = "a-token-of-this-test"


@pytest.fixture
def folder(tmp_path, folders):
    """A folder with the adapters desk and billing."""
    for name in ("desk", "billing"):
        shutil.copytree(folders[name], tmp_path / "served" / name)
    return tmp_path / "served"


@pytest.fixture
def http(serve, folder):
    url, scheduler = serve(administration=Administration(folder, TOKEN), adapters={})
    with httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        client.scheduler = scheduler
        yield client


def answer(http, model, most=8):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": most, "temperature": 0}
    found = http.post(CHAT, json=body)
    return found.json()["choices"][0]["message"]["content"] if found.status_code == 200 else found.status_code


def test_add_replace_and_remove(http, generated):
    desk, billing = generated("desk", "hello", 8)[1], generated("billing", "hello", 8)[1]
    assert desk != billing and answer(http, "desk") == 404
    made = http.put("/v1/models/desk")
    assert made.status_code == 201 and made.json()["id"] == "desk" and made.json()["parent"] == "tiny"
    assert answer(http, "desk") == desk
    assert http.put("/v1/models/desk", json={"folder": "billing"}).status_code == 200
    assert answer(http, "desk") == billing
    client = OpenAI(base_url=f"{http.base_url}/v1", api_key=TOKEN, max_retries=0)
    assert client.models.delete("desk").deleted
    assert answer(http, "desk") == 404 and [model.id for model in client.models.list()] == ["tiny"]
    eventually(lambda: not getattr(http.scheduler.adapters.model, "peft_config", None))
    assert answer(http, "tiny") == generated(None, "hello", 8)[1]


@pytest.mark.parametrize("replace", [False, True])
def test_a_running_request_keeps_its_adapter(http, generated, monkeypatch, replace):
    http.put("/v1/models/desk")
    scheduler, may_go, answers = http.scheduler, threading.Event(), []
    step, steps = scheduler._batch.step, []

    def step_then_wait():
        steps.append(1)
        if len(steps) == 4:
            scheduler._calls.run(None)  # as between two steps
            may_go.wait(20)
        return step()

    monkeypatch.setattr(scheduler._batch, "step", step_then_wait)
    asking = threading.Thread(target=lambda: answers.append(answer(http, "desk", 20)))
    asking.start()
    eventually(lambda: len(steps) == 4)
    if replace:
        changing = threading.Thread(target=lambda: http.put("/v1/models/desk", json={"folder": "billing"}))
        changing.start()
        eventually(lambda: scheduler._calls)
        may_go.set()
        changing.join()
    else:
        assert http.delete("/v1/models/desk").status_code == 200
        assert answer(http, "desk") == 404  # at once, while the request runs
        may_go.set()
    asking.join()
    assert answers == [generated("desk", "hello", 20)[1]]
    eventually(lambda: len(getattr(scheduler.adapters.model, "peft_config", None) or ()) == replace)
    if replace:
        assert answer(http, "desk") == generated("billing", "hello", 8)[1]


WRONG = [None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", "Bearer \xe9", f"Basic {TOKEN}", TOKEN]


@pytest.mark.parametrize("header", WRONG)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"{no json", b'{"folder": 7}'])
def test_a_change_without_the_token_is_refused_whatever_its_body(http, method, header, body):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with httpx.Client(base_url=http.base_url, headers=headers) as other:
        refusal = other.request(method, "/v1/models/desk", content=body)
    assert refusal.status_code == 401 and refusal.json()["error"]["code"] == "invalid_token"
    assert [its.name for its in http.scheduler.adapters.all()] == ["tiny"]


def test_a_server_that_was_not_asked_for_changes_refuses_them(shared):
    for method in ("PUT", "DELETE"):
        refusal = httpx.request(method, f"{shared[0]}/v1/models/desk", headers={"Authorization": "Bearer x"})
        assert refusal.status_code == 403 and "--adapter-folder" in refusal.json()["error"]["message"]
    assert httpx.get(f"{shared[0]}/v1/models/desk").status_code == 200


PATHS = ["..", "../outside", "/etc", "a/b", ".hidden", "", "desk\0", "~", "C:\\x", "desk/", "\u2024\u2024/x", "x" * 101]


@pytest.mark.parametrize("name", PATHS)
def test_a_folder_that_is_a_path_is_refused(http, folder, folders, name):
    shutil.copytree(folders["desk"], folder.parent / "outside")
    refusal = http.put("/v1/models/new", json={"folder": name})
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == "folder"
    assert [its.name for its in http.scheduler.adapters.all()] == ["tiny"]


@pytest.mark.parametrize(
    "name", ["%2e%2e%2foutside", "%2Fetc", "a%2Fb", ".x", "x" * 101, "__base__", "a%00b", "%C3%28"]
)
def test_a_name_that_is_a_path_is_refused(http, name):
    refusal = http.put(f"/v1/models/{name}", json={"folder": "desk"})
    assert refusal.status_code in (400, 404) and "error" in refusal.json()
    assert [its.name for its in http.scheduler.adapters.all()] == ["tiny"]


def test_links_that_lead_out_of_the_folder_are_refused(http, folder, folders, tmp_path):
    (folder / "link").symlink_to(folders["desk"])
    shutil.copytree(folder / "desk", folder / "inner")
    weights = folder / "inner" / "adapter_model.safetensors"
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    for name in ("link", "inner"):
        refusal = http.put(f"/v1/models/{name}")
        assert refusal.status_code == 400 and "leads out of the adapter folder" in refusal.json()["error"]["message"]


def test_what_is_no_servable_adapter_is_refused_and_the_rest_goes_on(http, folder, tiny_model, generated):
    http.put("/v1/models/desk")
    (folder / "empty").mkdir()
    shutil.copytree(folder / "desk", folder / "cut")
    (folder / "cut" / "adapter_model.safetensors").write_bytes(b"\x08")
    save_adapter(tiny_model, folder / "dora", 1, use_dora=True)
    save_adapter(tiny_model, folder / "bias", 1, bias="all")
    save_adapter(tiny_model, folder / "ga", 1)
    config = folder / "ga" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "lora_ga"}))
    save_adapter(tiny_model, folder / "nan", 1, lora_alpha=1e38)
    says = {
        "nothing": (404, "no such folder"),
        "empty": (400, "is missing"),
        "cut": (400, "cut short"),
        "dora": (400, "use_dora"),
        "bias": (400, "bias 'all'"),
        "ga": (400, "init_lora_weights 'lora_ga'"),
        "nan": (400, "not finite"),
    }
    for name, (status, text) in says.items():
        refusal = http.put(f"/v1/models/{name}")
        assert (refusal.status_code, text in refusal.json()["error"]["message"]) == (status, True), refusal.text
    refusal = http.put("/v1/models/tiny", json={"folder": "desk"})
    assert refusal.status_code == 409 and "base model" in refusal.json()["error"]["message"]
    assert http.put("/v1/models/desk", json={"folder": "cut"}).status_code == 400
    assert answer(http, "desk") == generated("desk", "hello", 8)[1]  # a replacement that fails changes nothing
    assert http.delete("/v1/models/tiny").status_code == 400 and http.delete("/v1/models/nothing").status_code == 404
    assert len(http.scheduler.adapters.model.peft_config) == 1


def test_a_server_has_room_for_so_many_adapters(serve, folder):
    limits = Limits(context=256, adapters=1)
    url, _ = serve(limits, Administration(folder, TOKEN), {"desk": folder / "desk"})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    refusal = httpx.put(f"{url}/v1/models/billing", headers=headers)
    assert refusal.status_code == 409 and refusal.json()["error"]["code"] == "adapters_full"
    assert (
        httpx.put(f"{url}/v1/models/desk", headers=headers, json={"folder": "billing"}, timeout=30).status_code == 200
    )


def test_the_counters_of_a_removed_adapter_end(http):
    http.put("/v1/models/desk")
    answer(http, "desk")
    assert 'adapter="desk"' in http.get("/metrics").text
    http.delete("/v1/models/desk")
    eventually(lambda: 'adapter="desk"' not in http.get("/metrics").text)


@pytest.mark.parametrize("kind", [["LORA"], {"a": 1}, None, 3])
def test_a_config_of_the_wrong_type_is_refused_and_the_server_goes_on(http, folder, kind):
    config = json.loads((folder / "desk" / "adapter_config.json").read_text())
    (folder / "desk" / "adapter_config.json").write_text(json.dumps(config | {"peft_type": kind}))
    assert http.put("/v1/models/desk").status_code == 400
    assert http.put("/v1/models/billing").status_code == 201 and http.get("/health").status_code == 200


def test_a_load_that_fails_halfway_is_undone(http, monkeypatch):
    from pypeft_fast import PeftModel

    assert http.put("/v1/models/desk").status_code == 201
    load = PeftModel.load_adapter

    def fails_at_the_end(self, *args, **options):
        load(self, *args, **options)
        raise RuntimeError("no memory")

    monkeypatch.setattr(PeftModel, "load_adapter", fails_at_the_end)
    found = http.put("/v1/models/billing")
    assert found.status_code == 400 and "no memory" in found.json()["error"]["message"]
    assert len(http.scheduler.adapters.model.peft_config) == 1


def test_a_name_that_is_too_long_for_the_disk_is_refused(http):
    assert http.put("/v1/models/" + "\u6f22" * 100).status_code in (400, 404)


def test_replaced_adapters_that_requests_still_use_count_as_loaded(serve, folder):
    url, scheduler = serve(Limits(context=256, adapters=1), Administration(folder, TOKEN), {})
    with httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.put("/v1/models/desk").status_code == 201
        used = scheduler.adapters.acquire("desk")
        assert client.put("/v1/models/desk").status_code == 200
        found = client.put("/v1/models/desk")
        assert found.status_code == 409 and found.json()["error"]["code"] == "adapters_full"
        scheduler.adapters.release(used)
        assert answer(client, "desk") != 404  # a step, after which the old adapter is gone
        eventually(lambda: client.put("/v1/models/desk").status_code == 200)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file_blocks_nobody(http, folder, name):
    (folder / "desk" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "desk" / name)
    refusal = http.put("/v1/models/new", json={"folder": "desk"})
    assert refusal.status_code == (201 if name == "chat_template.jinja" else 400)
    assert answer(http, "tiny", 2) != 404


@pytest.mark.parametrize("text", ["{% for m in messages %}", "{{ messages ", "\udcff"])
def test_a_template_that_is_no_template_is_refused_with_its_adapter(http, folder, text):
    (folder / "desk" / "chat_template.jinja").write_bytes(text.encode(errors="surrogateescape"))
    refusal = http.put("/v1/models/desk")
    assert refusal.status_code == 400 and "chat_template" in refusal.json()["error"]["message"]
    assert answer(http, "desk") == 404


def test_a_template_that_fails_for_a_conversation_is_an_error_of_the_request(http, folder):
    (folder / "desk" / "chat_template.jinja").write_text("{% for i in range(99999999) %}{% endfor %}")
    assert http.put("/v1/models/desk").status_code == 201
    assert answer(http, "desk") == 400 and answer(http, "tiny", 2) != 404
