//! A shim without the rest of the binary: what the integration tests start pods with.

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == keelson_linux::SHIM_ARGUMENT => {
            keelson_linux::shim_main(rest)
        }
        _ => eprintln!("this program is started by the runtime"),
    }
}
