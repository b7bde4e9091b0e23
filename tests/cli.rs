//! What the program prints and how it ends: `tests/cmd`. `TRYCMD=overwrite cargo test --test cli` writes the texts anew.

#[test]
fn commands() {
    // Help is wrapped to the width of the terminal.
    trycmd::TestCases::new().env("COLUMNS", "100").case("tests/cmd/*.trycmd").case("tests/cmd/*.toml");
}
