//! Containers for real, looked at from outside: through /proc of the host, the cgroup files, and what they print.
//! Needs root, cgroup2 and Debian's busybox-static.
//!
//! Its own `main`: the executor forks, which wants a single-threaded caller, as the shim is. It ends with the line of
//! Rust's own runner, from which hack/test counts.

#![allow(clippy::unwrap_used, reason = "a test, though not of the harness that clippy knows")]

mod basics;
mod bed;
mod confinement;
mod hostile;
mod pids;
mod resources;
mod users;

fn main() {
    if let Some(reason) = bed::missing() {
        println!("skipped: {reason}");
        return result(1, 0);
    }
    bed::isolate();
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let tests =
        [basics::TESTS, confinement::TESTS, pids::TESTS, users::TESTS, resources::TESTS, hostile::TESTS]
            .concat();
    let (us, mut passed, mut failed) = (sys::process::id(), 0, 0);
    for (name, test) in tests {
        if filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            continue;
        }
        let before = bed::Census::take();
        let outcome = std::panic::catch_unwind(test);
        if sys::process::id() != us {
            sys::process::exit_now(101); // a forked child of the test panicked
        }
        match outcome.and_then(|()| std::panic::catch_unwind(|| before.compare())) {
            Ok(()) => {
                println!("ok: {name}");
                passed += 1;
            }
            Err(_) => {
                println!("FAILED: {name}");
                failed += 1;
            }
        }
    }
    result(passed, failed);
    assert_eq!(failed, 0, "tests failed");
}

fn result(passed: u32, failed: u32) {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
}
