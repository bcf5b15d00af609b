"""A user deploys: what goes wrong is said in plain words and leaves nothing half made; what serves goes on serving."""

import threading

import httpx

from stack import wait_until

VERSIONED = """
    from brinery import endpoint

    @endpoint(name="versioned", min_workers=1)
    def versioned() -> str:
        return {answer!r}

    versioned.deploy()
    print("null")
"""


def names(stack):
    with stack.http() as http:
        return [endpoint["name"] for endpoint in http.get("/v1/endpoints").json()["endpoints"]]


def test_what_cannot_be_pickled_is_named_before_anything_is_sent(stack):
    done = stack.run(
        """
        import threading
        from brinery import endpoint

        gate = threading.Lock()

        @endpoint
        def guarded(x: int) -> int:
            with gate:
                return x

        guarded.deploy()
        """,
        check=False,
    )
    assert done.returncode == 1
    assert "gate" in done.stderr
    assert "guarded" not in names(stack)


def test_the_users_own_modules_travel_along(stack):
    (stack.desk / "recipes.py").write_text("def brine(salt: float) -> str:\n    return f'{salt:.0%} brine'\n")
    assert (
        stack.run("""
        import json
        import recipes
        from brinery import endpoint

        @endpoint
        def mix(salt: float) -> str:
            return recipes.brine(salt)

        mix.deploy()
        print(json.dumps(mix.remote(0.05)))
    """)
        == "5% brine"
    )


def test_a_requirement_that_cannot_be_met_shows_the_installers_words_and_can_be_put_right(stack):
    code = """
        import json
        from brinery import endpoint

        @endpoint(requirements=[{requirement!r}])
        def picky() -> str:
            import click
            return click.__name__

        picky.deploy()
        print(json.dumps(picky.remote()))
    """
    before = stack.environments()
    done = stack.run(code.format(requirement="click>9000"), check=False)
    assert done.returncode == 1
    assert "click>9000" in done.stdout + done.stderr
    assert "only" in done.stdout + done.stderr  # uv: "Because only click<=… is available"
    assert stack.environments() == before, "a failed build left something behind"

    assert stack.run(code.format(requirement="click<9000")) == "click"


def test_a_load_that_raises_is_told_and_the_old_version_serves_on(stack):
    stack.run(VERSIONED.format(answer="good"))
    done = stack.run(
        """
        from brinery import endpoint

        @endpoint(name="versioned")
        class Versioned:
            def load(self):
                raise RuntimeError("the weights are missing")

            def predict(self) -> str:
                return "bad"

        Versioned.deploy()
        """,
        check=False,
    )
    assert done.returncode == 1
    assert "the weights are missing" in done.stdout + done.stderr
    with stack.http() as http:
        assert http.post("/v1/endpoints/versioned/predict", json={}).json() == "good"


def test_a_new_version_takes_over_under_traffic_without_one_failed_request(stack):
    stack.run(VERSIONED.format(answer="one"))
    answers, stop = [], threading.Event()

    def call_all_the_time():
        with stack.http() as http:
            while not stop.wait(0.005):
                reply = http.post("/v1/endpoints/versioned/predict", json={})
                answers.append((reply.status_code, reply.text))

    callers = [threading.Thread(target=call_all_the_time) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        stack.run(VERSIONED.format(answer="two"))
        with stack.http() as http:
            assert http.post("/v1/endpoints/versioned/predict", json={}).json() == "two"
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 20, what="more answers of the new version")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(answers) == {(200, '"one"'), (200, '"two"')}
    assert answers[0] == (200, '"one"')


def test_deploying_the_same_again_makes_no_new_version(stack):
    stack.run(VERSIONED.format(answer="same"))
    first = stack.endpoint("versioned")
    stack.run(VERSIONED.format(answer="same"))
    assert stack.endpoint("versioned")["serving_version"] == first["serving_version"]


def test_a_deleted_endpoint_is_gone_with_its_processes(stack):
    stack.run(VERSIONED.format(answer="short-lived"))
    endpoint_id = stack.endpoint("versioned")["id"]
    stack.brinery("delete", "versioned", "--yes")

    def gone():
        with stack.http() as http:
            return http.get("/v1/endpoints/versioned").status_code == httpx.codes.NOT_FOUND

    wait_until(gone, what="the endpoint to be gone")
    with stack.http() as http:
        assert http.post("/v1/endpoints/versioned/predict", json={}).status_code == httpx.codes.NOT_FOUND
    wait_until(lambda: not stack.serves(endpoint_id), what="its processes to end")
