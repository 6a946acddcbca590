//! The language a process is written in: by its program's name, its ELF file, its mapped libraries.
//!
//! Only positive evidence counts: a name every installation uses, a section that only one tool
//! chain writes, a mapped runtime. C has none of these and stays unknown, like stripped programs of
//! compilers that leave no mark (Rust before 1.73 among them).

use std::fs::File;
use std::ops::Range;

use object::Endianness;
use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, SectionHeader};
use object::read::{ReadCache, ReadRef};

use super::proc_fs::ProcFs;

/// Largest piece of a program file that is read at once, and the sum of all pieces.
const PIECE_MAX: u64 = 256 * 1024;
const TOTAL_MAX: u64 = 1024 * 1024;

/// Values of `telemetry.sdk.language` that can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they say it themselves")]
pub enum Language {
    Cpp,
    Dotnet,
    Erlang,
    Go,
    Java,
    Nodejs,
    Php,
    Python,
    Ruby,
    Rust,
}

impl Language {
    /// The value of the semantic conventions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Language::Cpp => "cpp",
            Language::Dotnet => "dotnet",
            Language::Erlang => "erlang",
            Language::Go => "go",
            Language::Java => "java",
            Language::Nodejs => "nodejs",
            Language::Php => "php",
            Language::Python => "python",
            Language::Ruby => "ruby",
            Language::Rust => "rust",
        }
    }

    /// `process.runtime.name`, as the SDKs of the language say it; `None` where there is no runtime.
    pub fn runtime(self, exe_name: &str) -> Option<&'static str> {
        Some(match self {
            Language::Cpp | Language::Rust => return None,
            Language::Dotnet => ".NET",
            Language::Erlang => "BEAM",
            Language::Go => "go",
            Language::Java => "java",
            Language::Nodejs if exe_name.starts_with("bun") => "bun",
            Language::Nodejs if exe_name.starts_with("deno") => "deno",
            Language::Nodejs => "nodejs",
            Language::Php => "php",
            Language::Python if exe_name.starts_with("pypy") => "pypy",
            Language::Python => "cpython",
            Language::Ruby => "ruby",
        })
    }
}

/// By all means there are. An interpreter's name needs no further look; a mapped runtime counts
/// only where the program itself is not Go or Rust (which embed others, not the other way round).
pub fn detect(proc: &ProcFs, pid: u32, exe_name: &str) -> Option<Language> {
    by_name(exe_name).or_else(|| {
        let marks = proc.open_exe(pid).and_then(elf_marks).unwrap_or_default();
        marks
            .language
            .or_else(|| by_maps(&proc.maps(pid)?))
            .or(marks.cpp.then_some(Language::Cpp))
    })
}

/// By the name of the program alone.
pub fn by_name(exe_name: &str) -> Option<Language> {
    let family = exe_name
        .trim_end_matches(|c: char| c.is_ascii_digit() || c == '.')
        .trim_end_matches('-');
    Some(match family {
        "python" | "pypy" | "uwsgi" => Language::Python,
        "node" | "nodejs" | "bun" | "deno" => Language::Nodejs,
        "java" => Language::Java,
        "ruby" | "jruby" | "truffleruby" => Language::Ruby,
        "php" | "php-fpm" | "php-cgi" => Language::Php,
        "dotnet" => Language::Dotnet,
        "beam.smp" => Language::Erlang,
        _ => return None,
    })
}

/// By the libraries in the text of `/proc/PID/maps`.
pub fn by_maps(text: &str) -> Option<Language> {
    text.lines().find_map(|line| {
        let path = line.get(line.find('/')?..)?;
        let name = path.trim_end_matches(" (deleted)").rsplit('/').next()?;
        let library = name.strip_prefix("lib")?;
        Some(match library.split_once(".so")?.0 {
            "jvm" => Language::Java,
            "coreclr" => Language::Dotnet,
            "node" => Language::Nodejs,
            "ruby" => Language::Ruby,
            "php" => Language::Php,
            other if other.starts_with("python") => Language::Python,
            other if other.starts_with("ruby-") => Language::Ruby,
            other if other.starts_with("php") => Language::Php,
            _ => return None,
        })
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Marks {
    language: Option<Language>,
    /// Linked against a C++ standard library.
    cpp: bool,
}

/// Reads of a file that stay within [`PIECE_MAX`] and [`TOTAL_MAX`], whatever its headers claim.
struct Bounded {
    cache: ReadCache<File>,
    left: std::cell::Cell<u64>,
}

impl Bounded {
    fn take(&self, size: u64) -> Result<(), ()> {
        let left = self
            .left
            .get()
            .checked_sub(size)
            .filter(|_| size <= PIECE_MAX)
            .ok_or(())?;
        self.left.set(left);
        Ok(())
    }
}

impl<'a> ReadRef<'a> for &'a Bounded {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.take(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.take(64)?;
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

fn elf_marks(file: File) -> Option<Marks> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let data = Bounded {
        cache: ReadCache::new(file),
        left: std::cell::Cell::new(TOTAL_MAX),
    };
    match (&data).read_bytes_at(0, 5).ok()? {
        b"\x7fELF\x01" => marks::<FileHeader32<Endianness>>(&data),
        b"\x7fELF\x02" => marks::<FileHeader64<Endianness>>(&data),
        _ => None,
    }
}

fn marks<Elf: FileHeader<Endian = Endianness>>(data: &Bounded) -> Option<Marks> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let headers = header.section_headers(endian, data).ok()?;
    let (at, size) = headers
        .get(usize::try_from(header.shstrndx(endian, data).ok()?).ok()?)?
        .file_range(endian)?;
    let names = data.read_bytes_at(at, size).ok()?;
    let mut marks = Marks::default();
    let mut rust = false;
    for section in headers {
        let name = names.get(usize::try_from(section.sh_name(endian)).ok()?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        match name {
            // Written by the Go linker, kept by strip, and read by the runtime itself.
            b".go.buildinfo" | b".note.go.buildid" => marks.language = Some(Language::Go),
            b".comment" => {
                let text = section.data(endian, data).unwrap_or_default();
                rust |= contains(text, b"rustc version");
            }
            // The strings of the dynamic section name the libraries that the program asks for.
            b".dynstr" => {
                let text = section.data(endian, data).unwrap_or_default();
                marks.cpp |= text.split(|byte| *byte == 0).any(|name| {
                    name.starts_with(b"libstdc++.so") || name.starts_with(b"libc++.so")
                });
                if text
                    .split(|byte| *byte == 0)
                    .any(|name| name == b"DotNetRuntimeInfo")
                {
                    marks.language = Some(Language::Dotnet);
                }
            }
            _ => {}
        }
    }
    if marks.language.is_none() && rust {
        marks.language = Some(Language::Rust);
    }
    Some(marks)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("python3.11", Some(Language::Python)),
            ("pypy3", Some(Language::Python)),
            ("node", Some(Language::Nodejs)),
            ("node-20", Some(Language::Nodejs)),
            ("java", Some(Language::Java)),
            ("php-fpm8.2", Some(Language::Php)),
            ("ruby3.2", Some(Language::Ruby)),
            ("dotnet", Some(Language::Dotnet)),
            ("nginx", None),
            ("nodejs-exporter", None),
            ("", None),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }

    #[test]
    fn maps() {
        let line = |path: &str| format!("7f01-7f02 r-xp 00000000 08:01 42    {path}\n");
        for (path, expected) in [
            ("/usr/lib/libpython3.11.so.1.0", Some(Language::Python)),
            (
                "/usr/lib/jvm/java-17/lib/server/libjvm.so",
                Some(Language::Java),
            ),
            ("/usr/lib/libnode.so.108", Some(Language::Nodejs)),
            ("/usr/lib/libruby-3.1.so.3.1", Some(Language::Ruby)),
            (
                "/usr/share/dotnet/shared/x/7.0.1/libcoreclr.so",
                Some(Language::Dotnet),
            ),
            ("/usr/lib/apache2/modules/libphp8.2.so", Some(Language::Php)),
            (
                "/usr/lib/libruby-3.1.so.3.1 (deleted)",
                Some(Language::Ruby),
            ),
            ("/usr/lib/libc.so.6", None),
            ("/srv/libpython/data", None),
            ("[heap]", None),
        ] {
            let text = format!("{}{}", line("/usr/bin/x"), line(path));
            assert_eq!(by_maps(&text), expected, "{path}");
        }
    }

    #[test]
    fn this_test_is_rust() {
        let file = File::open("/proc/self/exe").expect("own program");
        assert_eq!(
            elf_marks(file).and_then(|marks| marks.language),
            Some(Language::Rust)
        );
    }

    #[test]
    fn real_tool_chains() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (compiler, args, source, expected) in [
            (
                "gcc",
                &[][..],
                ("x.c", "int main(){return 0;}"),
                Some(Marks::default()),
            ),
            (
                "gcc",
                &["-s"],
                ("y.c", "int main(){return 0;}"),
                Some(Marks::default()),
            ),
            (
                "g++",
                &["-s"],
                ("z.cc", "#include <iostream>\nint main(){std::cout<<1;}"),
                Some(Marks {
                    language: None,
                    cpp: true,
                }),
            ),
            (
                "rustc",
                &["-Cstrip=symbols"],
                ("r.rs", "fn main(){}"),
                Some(Marks {
                    language: Some(Language::Rust),
                    cpp: false,
                }),
            ),
        ] {
            let (path, out) = (dir.path().join(source.0), dir.path().join("out"));
            std::fs::write(&path, source.1).expect("write");
            match std::process::Command::new(compiler)
                .args(args)
                .arg(&path)
                .arg("-o")
                .arg(&out)
                .status()
            {
                Ok(status) if status.success() => {}
                other => {
                    println!("skipped {compiler}: {other:?}");
                    continue;
                }
            }
            assert_eq!(
                elf_marks(File::open(&out).expect("built")),
                expected,
                "{compiler} {args:?}"
            );
        }
        for go in ["/usr/local/go/bin/go", "/usr/bin/go", "/usr/bin/docker"] {
            let Ok(file) = File::open(go) else {
                println!("skipped {go}: not installed");
                continue;
            };
            if let Some(marks) = elf_marks(file) {
                assert_eq!(marks.language, Some(Language::Go), "{go}");
            }
        }
    }

    #[test]
    fn headers_that_lie_cost_nothing() {
        let mut own = vec![0; 64];
        std::io::Read::read_exact(&mut File::open("/proc/self/exe").expect("own"), &mut own)
            .expect("header");
        let dir = tempfile::tempdir().expect("tempdir");
        for at in 16..64 {
            for value in [0x00, 0x7f, 0xff] {
                let mut bytes = own.clone();
                bytes[at] = value;
                let path = dir.path().join("elf");
                std::fs::write(&path, &bytes).expect("write");
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .read(true)
                    .open(&path)
                    .expect("open");
                file.set_len(1 << 40).expect("sparse");
                elf_marks(file);
            }
        }
        let file = File::open("/dev/zero").expect("open");
        assert_eq!(elf_marks(file), None);
    }
}
