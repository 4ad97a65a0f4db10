"""The checks that `make macos-check` runs on the build for macOS can fail: here they get broken input."""

from macos import check

LIBRARIES = {"@rpath/libc10.dylib": {"_a", "_b"}, "/usr/lib/libSystem.B.dylib": {"_free"}}


def test_symbols_are_looked_up_in_the_library_they_are_bound_to() -> None:
    imports = {"@rpath/libc10.dylib": ["_a"], "/usr/lib/libSystem.B.dylib": ["_free"], "": ["_PyLong_Type"]}
    assert check.unresolved(imports, LIBRARIES, {"_PyLong_Type"}) == []
    imports = {"@rpath/libc10.dylib": ["_free"], "/usr/lib/libgone.dylib": ["_a"], "": ["_b"]}
    assert check.unresolved(imports, LIBRARIES, {"_PyLong_Type"}) == [
        "_free: not in @rpath/libc10.dylib",
        "_a: not in /usr/lib/libgone.dylib",
        "_b: not in Python",
    ]


def test_a_misspelt_selector_is_in_no_source() -> None:
    sources = {"one": {"newLibraryWithURL:error:"}, "other": {"name"}}
    assert check.unconfirmed("selector", ["name", "newLibraryWithURL:error:"], sources) == []
    assert check.unconfirmed("selector", ["newLibraryWithUrl:error:"], sources) == [
        "selector newLibraryWithUrl:error:: in no source"
    ]


def test_a_wrong_or_unknown_value_is_named() -> None:
    assert check.wrong_values({"MTLDataTypeBool": 53}, {"MTLDataTypeBool": 53}) == []
    assert check.wrong_values({"MTLDataTypeBool": 54, "MTLGone": 1}, {"MTLDataTypeBool": 53}) == [
        "MTLDataTypeBool = 54: Apple has 53",
        "MTLGone = 1: Apple has no such name",
    ]


def test_a_method_with_other_types_is_named() -> None:
    apples = {"P": {"-length": "Q16@0:8"}}
    assert check.wrong_encodings({"P": {"-length": "Q16@0:8"}, "Unknown": {"-x": "v16@0:8"}}, apples) == []
    assert check.wrong_encodings({"P": {"-length": "I16@0:8"}}, apples) == ["-[P length] is I16@0:8: Apple has Q16@0:8"]


def test_files_that_differ_by_case_alone() -> None:
    assert check.clashes(["metal/norm.metal", "csrc/norm.mm"]) == []
    assert len(check.clashes(["csrc/Norm.mm", "csrc/norm.mm"])) == 2


def test_functions_that_compile_to_other_code() -> None:
    assert check.changed({"a": b"1", "b": b"2"}, {"a": b"3", "c": b"2"}) == ["a"]
