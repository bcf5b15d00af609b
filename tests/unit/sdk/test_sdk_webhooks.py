"""The verifier: what it lets through, and all that it does not."""

import base64
import hashlib
import hmac
import json
import time

import pytest

from brinery.errors import InvalidRequestError, SignatureError
from brinery.webhooks import verify

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
BODY = json.dumps({"type": "task.succeeded", "data": {"id": "tsk_1", "text": "größe"}}).encode()


def signature(body=BODY, *, message_id="tsk_1", at=None, key=KEY):
    timestamp = str(int(time.time() if at is None else at))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def test_a_signed_message_is_returned_decoded():
    assert verify(BODY, signature(), SECRET)["data"]["text"] == "größe"


def test_a_signature_made_elsewhere_fits():
    """The example of the Standard Webhooks libraries' own tests, whose time is long past."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert verify(b'{"test": 2432232314}', headers, secret, tolerance_seconds=1e12) == {"test": 2432232314}


def test_names_of_headers_may_have_any_case():
    assert verify(BODY, {name.title(): value for name, value in signature().items()}, SECRET)


def test_one_of_several_signatures_is_enough_and_other_versions_do_not_count():
    headers = signature()
    good = headers["webhook-signature"]
    for several in (f"v1,AAAA {good}", f"{good} v1,AAAA", f"v1a,xyz {good} v2,abc"):
        assert verify(BODY, {**headers, "webhook-signature": several}, SECRET)
    for none in (good.replace("v1,", "v2,"), good.replace("v1,", ""), "v1,", ",", " ", "v1", f"v1, {good[3:]}"):
        with pytest.raises(SignatureError):
            verify(BODY, {**headers, "webhook-signature": none}, SECRET)


def test_a_body_that_was_decoded_is_refused_by_what_is_to_be_given():
    assert verify(bytearray(BODY), signature(), SECRET)
    for decoded in (BODY.decode(), json.loads(BODY)):
        with pytest.raises(TypeError, match="body is the request's bytes as they came"):
            verify(decoded, signature(), SECRET)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_or_changed_header_is_refused(name):
    headers = signature()
    for changed in ({**headers, name: ""}, {**headers, name: headers[name] + "1"}):
        with pytest.raises(SignatureError):
            verify(BODY, changed, SECRET)
    del headers[name]
    with pytest.raises(SignatureError, match=name):
        verify(BODY, headers, SECRET)


def test_a_changed_body_and_another_key_are_refused():
    with pytest.raises(SignatureError):
        verify(BODY + b" ", signature(), SECRET)
    with pytest.raises(SignatureError):
        verify(BODY, signature(key=bytes(32)), SECRET)


@pytest.mark.parametrize("away_seconds", [-400, 400, -1e9])
def test_a_time_too_far_away_is_refused_in_both_directions(away_seconds):
    headers = signature(at=time.time() + away_seconds)
    with pytest.raises(SignatureError, match="clock"):
        verify(BODY, headers, SECRET)
    assert verify(BODY, headers, SECRET, tolerance_seconds=2e9)


@pytest.mark.parametrize("timestamp", ["now", "-1", "1e9", "٣", "9" * 5000])
def test_a_time_that_is_none_is_refused_although_it_is_signed(timestamp):
    digest = hmac.digest(KEY, f"tsk_1.{timestamp}.".encode() + BODY, hashlib.sha256)
    signed = "v1," + base64.b64encode(digest).decode()
    headers = {"webhook-id": "tsk_1", "webhook-timestamp": timestamp, "webhook-signature": signed}
    with pytest.raises(SignatureError):
        verify(BODY, headers, SECRET)


@pytest.mark.parametrize("body", [b"not json", b"[1]", b"", b"\xff"])
def test_what_is_signed_and_no_object_is_refused(body):
    with pytest.raises(SignatureError, match="no JSON object"):
        verify(body, signature(body), SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!", SECRET.removeprefix("whsec_"), "größe"])
def test_a_secret_that_is_none_is_another_error_because_it_is_the_receivers_own(secret):
    with pytest.raises(InvalidRequestError, match="brinery webhooks secret"):
        verify(BODY, signature(), secret)


def test_a_secret_with_a_line_end_is_taken():
    assert verify(BODY, signature(), SECRET + "\n")
