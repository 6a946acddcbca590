//! Titles that programs put in place of their arguments (setproctitle, `process.title`).

use super::{Command, name_of, node, paths, scripts};

/// A single argument with a space is a title, or a program with a space in its path.
pub(super) fn is_title(text: &str) -> bool {
    text.contains(' ') && !text.starts_with('/')
}

/// The name in a title.
pub(super) fn name(command: &Command<'_>, title: &str) -> Option<String> {
    let first = title.split_whitespace().next()?;
    let head = first.trim_end_matches(':');
    let bracket = title
        .rfind('[')
        .and_then(|at| title.get(at + 1..)?.split(']').next());
    let last_bracket = bracket.filter(|text| !text.is_empty());
    match head {
        // gunicorn: worker [shop.wsgi:app]
        "gunicorn" => last_bracket
            .and_then(|app| scripts::titled_application(command, app))
            .or_else(|| Some(head.into())),
        // puma 6.4.0 (tcp://0.0.0.0:3000) [shop]; puma: cluster worker 0: 1234 [shop]
        "puma" => last_bracket
            .map(str::to_owned)
            .or_else(|| paths::cwd_project(command))
            .or_else(|| Some(head.into())),
        // sidekiq 7.1.0 shop [0 of 5 busy]
        "sidekiq" => title
            .split_whitespace()
            .nth(2)
            .filter(|word| !word.starts_with('['))
            .map(str::to_owned)
            .or_else(|| Some(head.into())),
        // Passenger RubyApp: /srv/shop (production)
        "Passenger" => title
            .split_whitespace()
            .find(|word| word.starts_with('/'))
            .and_then(|path| paths::project(std::path::Path::new(path)))
            .or_else(|| Some("passenger".into())),
        // unicorn worker[0] -c config/unicorn.rb
        "unicorn" | "unicorn_rails" => {
            paths::cwd_project(command).or_else(|| Some("unicorn".into()))
        }
        // php-fpm: pool shop
        "php-fpm" => title
            .split_once(" pool ")
            .and_then(|(_, pool)| pool.split_whitespace().next())
            .filter(|pool| *pool != "www")
            .map(str::to_owned)
            .or_else(|| Some(head.into())),
        // next-server (v14.2.3)
        "next-server" => node::project(command, head),
        // PM2 v5.3.0: God Daemon (/root/.pm2)
        "PM2" => Some("pm2".into()),
        "uWSGI" => paths::cwd_project(command).or_else(|| Some("uwsgi".into())),
        // [celeryd: celery@host:MainProcess] -active- (worker -A shop)
        _ if title.starts_with("[celeryd") => {
            let words: Vec<&str> = title
                .split_whitespace()
                .map(|word| word.trim_matches(['(', ')']))
                .collect();
            name_of(command, &[&["celery"], words.as_slice()].concat(), 1)
        }
        // nginx: worker process; postgres: writer; anything of that form.
        _ if first.ends_with(':') && head.len() < first.len() && !head.is_empty() => {
            Some(paths::base(head).to_owned())
        }
        _ => name_of(command, &title.split_whitespace().collect::<Vec<_>>(), 1),
    }
}
