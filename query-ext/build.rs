//! libduckdb.so lies beside the extension in the server's library directory.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,$ORIGIN");
}
