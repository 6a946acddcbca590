//! Prints the TLS libraries in the files that are named, or of processes by their ids.

use std::fs::File;
use std::time::Instant;

use tracer_agent::discover::binary::{Scanner, contents};
use tracer_agent::meta::proc_fs::ProcFs;

fn main() {
    let mut scanner = Scanner::new(ProcFs::default());
    for name in std::env::args().skip(1) {
        let begin = Instant::now();
        if let Ok(pid) = name.parse() {
            println!("{name}: {:#?} {:?}", scanner.scan(pid), begin.elapsed());
            continue;
        }
        let found = File::open(&name).and_then(|file| Ok((file.metadata()?.len(), file)));
        match found {
            Ok((len, file)) => match contents(&file, len) {
                Ok(contents) => {
                    let libraries = contents.libraries;
                    println!("{name}: {} in {:?}", libraries.len(), begin.elapsed());
                    for library in libraries {
                        println!("  {} {:?}", library.library, library.library);
                        for function in library.functions.iter() {
                            println!("    {function:x?}");
                        }
                        for refused in library.refused.iter() {
                            println!("    refused {:?}: {}", refused.probe, refused.reason);
                        }
                    }
                }
                Err(error) => println!("{name}: {error}"),
            },
            Err(error) => println!("{name}: {error}"),
        }
    }
}
