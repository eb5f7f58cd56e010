"""What a broker's URL says."""

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.brokerurl import BrokerUrl, parse_url
from brokerkit.errors import ConfigurationError


def read(url: str, **options: str | float | bool | None) -> BrokerUrl:
    return parse_url(url, port=9, known={"lease", "token", "mode"}, options=options, secrets={"token"})


@given(st.text(min_size=1), st.text(min_size=1))
def test_an_encoded_user_and_password_come_back_and_show_in_no_repr(user: str, password: str) -> None:
    url = read(f"x://{quote(user, safe='')}:{quote(password, safe='')}@localhost")
    assert (url.user, url.password) == (user, password)
    assert "***@localhost" in url.text
    assert url.password is None or f"password={url.password!r}" not in repr(url)


def test_hosts_have_the_port_given_or_the_usual_one() -> None:
    assert read("x://a:1,b,[::1]:2,[::2]/v%2Fh").hosts == (("a", 1), ("b", 9), ("::1", 2), ("::2", 9))
    assert read("x://a:1,b,[::1]:2,[::2]/v%2Fh").path == "v/h"
    assert read("x://").hosts == (("localhost", 9),)


@pytest.mark.parametrize(
    "url",
    [
        "a:1",
        "x://a:b",
        "x://a:0",
        "x://a:65536",
        "x://a:",
        "x://a,,b",
        "x://[::1",
        "x://[::1]2",
        "x://u:p/w@h",
        "x://h?nothing=1",
        "x://h?lease=1&lease=2",
        "amqps://h?tls=off",
        "x+tls://h?tls=off",
        "x://h?tls=perhaps",
    ],
)
def test_what_cannot_be_read_is_an_error_that_shows_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(url)
    assert "p/w" not in str(raised.value)


@pytest.mark.parametrize("password", ["5672?S3cret", "12?ab&S3cret", "12?S3cret=x", "12?lease=1&S3cret"])
def test_a_password_with_a_bare_question_mark_shows_in_no_error(password: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encode") as raised:
        read(f"x://u:{password}@h/v")
    assert "S3cret" not in str(raised.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no option 'leese'"):
        read("x://u:p@h?leese=1")
    with pytest.raises(ConfigurationError, match="no option 'leese'"):
        read("x://h?token=a@b", leese=1)


def test_a_keyword_wins_over_the_query_and_none_is_not_given() -> None:
    url = read("x://h?lease=1", lease=2.5)
    assert url.number("lease", 9) == 2.5
    assert read("x://h?lease=1", lease=None).number("lease", 9) == 1
    assert read("x://h").number("lease", 9) == 9


@pytest.mark.parametrize("value", ["x", "nan", "inf", "-1", "11", ""])
def test_a_number_out_of_its_range_is_refused_with_the_range(value: str) -> None:
    with pytest.raises(ConfigurationError, match="lease is a number from 0 to 10"):
        read(f"x://h?lease={value}").number("lease", 1, most=10)


def test_a_choice_is_one_out_of_the_list() -> None:
    assert read("x://h?mode=a").text_of("mode", choices=("a", "b")) == "a"
    assert read("x://h").text_of("mode", "b", choices=("a", "b")) == "b"
    with pytest.raises(ConfigurationError, match="mode is one of a, b"):
        read("x://h?mode=c").text_of("mode", choices=("a", "b"))


@pytest.mark.parametrize(
    "url", ["x://u:p@far", "x://far?token=t", "x://u:p@localhost,far", "x://u:p@10.0.0.1"]
)
def test_credentials_do_not_travel_unencrypted_to_another_machine_unless_asked_for_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="insecure=on"):
        read(url)
    joint = "&" if "?" in url else "?"
    assert not read(f"{url}{joint}insecure=on").tls
    assert read(f"{url}{joint}tls=on").tls


@pytest.mark.parametrize(
    "url", ["x://u:p@localhost", "x://u:p@127.0.0.2:1", "x://u:p@[::1]", "x://far", "x://u@far"]
)
def test_this_machine_and_no_secret_need_no_encryption(url: str) -> None:
    assert not read(url).tls
    assert read(url).context() is None


@pytest.mark.parametrize("url", ["amqps://far", "x+tls://far", "x://far?tls=on"])
def test_tls_verifies_certificate_and_host_name_unless_told_not_to(url: str) -> None:
    context = read(url).context()
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    trusting = read(url, tls_verify=False).context()
    assert trusting is not None
    assert not trusting.check_hostname
    assert trusting.verify_mode is ssl.CERT_NONE


def test_files_of_certificates_are_read_and_a_bad_one_is_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    ca, chain, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    certificate.private_key_pem.write_to_path(str(key))
    url = f"x+tls://far?tls_ca={ca}&tls_cert={chain}&tls_key={key}"
    context = read(url).context()
    assert context is not None
    assert context.cert_store_stats()["x509_ca"] == 1
    for option, bad in [("tls_ca", key), ("tls_ca", tmp_path), ("tls_cert", ca), ("tls_key", ca)]:
        options: dict[str, str | float | bool | None] = {option: str(bad)}
        with pytest.raises(ConfigurationError, match=option):
            read(url, **options).context()
