//! Links `src/malloc.c` into the program.

fn main() {
    println!("cargo::rerun-if-changed=src/malloc.c");
    for object in cc::Build::new()
        .file("src/malloc.c")
        .compile_intermediates()
    {
        println!("cargo::rustc-link-arg-bins={}", object.display());
    }
}
