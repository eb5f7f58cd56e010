import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import BadHeader
from brokerkit.message import Address, Message, check_headers
from tests.core.deliveries import case, examples


class TestMessage:
    MESSAGE = Message(body=b"abc", key=b"k", headers=(("a", "1"), ("A", b"2"), ("a", "é")))

    def test_the_first_header_of_that_exact_name_is_given(self) -> None:
        assert self.MESSAGE.header("a") == "1"
        assert self.MESSAGE.header("A") == b"2"
        assert self.MESSAGE.header("b") is None

    def test_headers_are_left_out_by_exact_name_in_order(self) -> None:
        assert self.MESSAGE.without(["a", "x"]) == (("A", b"2"),)
        assert self.MESSAGE.without(iter(["A"])) == (("a", "1"), ("a", "é"))

    def test_a_copy_differs_only_where_asked(self) -> None:
        changed = self.MESSAGE.replace(body=b"")

        assert (changed.body, changed.key, changed.headers) == (b"", b"k", self.MESSAGE.headers)
        assert self.MESSAGE.body == b"abc"

    @pytest.mark.parametrize(
        ("message", "size"),
        [
            (Message(body=b""), 0),
            (Message(body=b"abc"), 3),
            (Message(body=b"abc", key=b"k"), 4),
            (Message(body=b"", headers=(("ab", "é"), ("c", b"\xff\xff"))), 7),
            (Message(body=b"", headers=(("é", "1"),)), 3),
            (Message(body=b"", headers=(("a", "\ud800"),)), 4),
        ],
        ids=case,
    )
    def test_b6_the_size_counts_bytes_and_headers(self, message: Message, size: int) -> None:
        assert message.size == size


class TestAddress:
    def test_it_is_shown_as_a_path(self) -> None:
        assert str(Address("orders")) == "orders"
        assert str(Address("orders", "billing", "dead")) == "orders/billing/dead"

    @pytest.mark.parametrize(
        ("group", "place"), [("g", None), (None, "inlet"), (None, "dead"), ("g", "retry"), ("g", "")]
    )
    def test_half_an_address_or_another_place_is_refused(self, group: str | None, place: str | None) -> None:
        with pytest.raises(ValueError, match="place"):
            Address("orders", group, place)


class TestHeaders:
    @pytest.mark.parametrize("name", ["a", "X-Y", "!", "~", "a/b", "#", "a.b_c-d"])
    @pytest.mark.parametrize("value", ["", "é😀", "a b", "\t", "\x80", b"", b"\x00\r\n\xff"], ids=case)
    def test_visible_ascii_names_with_text_or_bytes_pass_unchanged(
        self, name: str, value: str | bytes
    ) -> None:
        assert check_headers([(name, value), (name, value)]) == ((name, value), (name, value))

    @pytest.mark.parametrize(
        "name",
        ["", " ", "a b", "a:b", ":", "é", "a\n", "a\r\n", "\x00", "a\x7f", "\ud800", 7, None, b"a"],
        ids=case,
    )
    def test_b8_any_other_name_is_refused(self, name: object) -> None:
        with pytest.raises(BadHeader, match="header name"):
            check_headers([(name, "x")])

    @pytest.mark.parametrize("character", [chr(code) for code in range(32) if code != 9] + ["\x7f"], ids=case)
    def test_b4_b8_a_control_character_in_a_text_is_refused_by_the_headers_name(self, character: str) -> None:
        with pytest.raises(BadHeader, match="header 'tenant': control characters"):
            check_headers([("tenant", f"a{character}b")])

    def test_b5_a_lone_surrogate_is_refused(self) -> None:
        with pytest.raises(BadHeader, match="header 'tenant': the value holds a lone surrogate") as caught:
            check_headers([("tenant", "\udc00")])

        assert isinstance(caught.value.__cause__, UnicodeEncodeError)

    @pytest.mark.parametrize("value", [7, None, 1.5, ["a"], bytearray(b"x")], ids=case)
    def test_a_value_that_is_neither_text_nor_bytes_is_refused(self, value: object) -> None:
        with pytest.raises(
            BadHeader, match=f"header 'a': the value is {type(value).__name__}; give str or bytes"
        ):
            check_headers([("a", value)])

    def test_b7_at_most_128_headers(self) -> None:
        assert len(check_headers([("a", "")] * 128)) == 128
        with pytest.raises(BadHeader, match="129 headers of 129 bytes: at most 128"):
            check_headers([("a", "")] * 129)

    @pytest.mark.parametrize(("name", "value"), [("a", "x"), ("a", b"x"), ("a", "é"), ("abc", "x")])
    def test_b7_at_most_64_kib_of_them_in_bytes(self, name: str, value: str | bytes) -> None:
        one = len(value.encode() if isinstance(value, str) else value)
        most = (64 * 1024 - len(name)) // one

        check_headers([(name, value * most)])
        with pytest.raises(BadHeader, match="at most 128 headers and 65536 bytes"):
            check_headers([(name, value * (most + 1))])

    @given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=10) | st.binary(max_size=10))))
    @examples(150)
    def test_what_is_accepted_is_accepted_unchanged_and_has_no_line_breaks(
        self, pairs: list[tuple[str, str | bytes]]
    ) -> None:
        try:
            checked = check_headers(pairs)
        except BadHeader:
            return
        assert list(checked) == pairs
        for name, value in checked:
            assert name.isascii()
            assert isinstance(value, bytes) or not set(value) & set("\r\n\x00")
