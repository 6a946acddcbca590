//! Real command lines and the names they give.

use std::path::Path;

use super::{Command, service_name};

/// `package.json` files of the imaginary host: directory and name.
const PACKAGES: [(&str, &str); 4] = [
    ("/srv/shop", "shop-web"),
    ("/srv/mono/apps/cart", "@acme/cart"),
    ("/usr/lib/node_modules/npm", "npm"),
    ("/srv/nested", "nested-api"),
];

#[track_caller]
fn check(exe: &str, cwd: &str, line: &[&str], expected: Option<&str>) {
    let env = |name: &str| (name == "FLASK_APP" && cwd == "/srv/flask-env").then_some("orders.py");
    let package = |directory: &Path| {
        PACKAGES
            .iter()
            .find(|(path, _)| Path::new(path) == directory)
            .map(|(_, name)| (*name).to_owned())
    };
    let command = Command {
        exe: (!exe.is_empty()).then_some(exe),
        args: line,
        cwd: (!cwd.is_empty()).then(|| Path::new(cwd)),
        env: &env,
        package_name: &package,
    };
    assert_eq!(
        service_name(&command).as_deref(),
        expected,
        "{exe} in {cwd}: {line:?}"
    );
}

/// `program | working directory | arguments | name`; `-` is none, and single spaces part arguments.
#[track_caller]
fn check_lines(table: &str) {
    let mut rows = 0;
    for row in table.lines().map(str::trim).filter(|row| !row.is_empty()) {
        let [exe, cwd, line, name] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("bad row {row}");
        };
        let line: Vec<&str> = line.split(' ').collect();
        check(exe, cwd, &line, (name != "-").then_some(name));
        rows += 1;
    }
    assert!(rows > 0);
}

#[test]
fn python() {
    check_lines(
        "/usr/bin/python3.11 | /srv/shop | python app.py | app
         /usr/bin/python3.11 | / | python3 -u /srv/shop/main.py --port 80 | main
         /usr/bin/python3 | | python3 -W ignore -X dev -O server.py | server
         /usr/bin/python3 | / | python -m shop.server | shop.server
         /usr/bin/python3 | / | python -um shop.worker | shop.worker
         /usr/bin/python3 | / | python -m http.server 8000 | http.server
         /usr/bin/python3 | / | python -m shop.__main__ | shop
         /usr/bin/python3 | / | python -c print(1) | -
         /usr/bin/python3 | / | python | -
         /usr/bin/python3 | / | python /usr/local/bin/gunicorn app:app | app
         /usr/bin/python3 | / | /usr/bin/python /usr/local/bin/gunicorn -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:80 shop.wsgi:app | shop
         /usr/bin/python3 | / | python gunicorn --name checkout --preload app:app | checkout
         /usr/bin/python3 | /srv/store | python /usr/bin/gunicorn --preload config.wsgi:application | store
         /usr/bin/python3 | /srv/store | python /usr/bin/gunicorn -c gunicorn.conf.py | store
         /usr/bin/python3 | / | python /venv/bin/uvicorn shop.main:app --host 0.0.0.0 --port 80 --reload | shop
         /usr/bin/python3 | / | python -m uvicorn --factory orders:create_app | orders
         /usr/bin/python3 | / | python /venv/bin/hypercorn src.billing.app:app | billing
         /usr/bin/python3 | / | python /venv/bin/daphne -b 0.0.0.0 -p 8000 mysite.asgi:application | mysite
         /usr/bin/python3 | / | python /venv/bin/waitress-serve --port=8041 --call shop:create | shop
         /usr/bin/python3 | / | python /venv/bin/celery -A shop worker -l info | shop
         /usr/bin/python3 | / | python -m celery --app=shop.celery beat | shop
         /usr/bin/python3 | / | python /venv/bin/flask --app hello:app run | hello
         /usr/bin/python3 | /srv/flask-env | python /venv/bin/flask run | orders
         /usr/bin/python3 | /srv/cart | python -m flask run -p 80 | cart
         /usr/bin/python3 | /srv/mysite | python manage.py runserver 0.0.0.0:8000 | mysite
         /usr/bin/python3 | / | python /srv/store/src/manage.py runserver | store
         /usr/bin/python3 | / | python /app/manage.py runserver | app
         /usr/bin/python3 | | python manage.py runserver | manage
         /usr/bin/python3 | /srv | python /venv/bin/fastapi run catalog/main.py | catalog
         /usr/bin/python3 | /srv | python /venv/bin/streamlit run dash.py | dash
         /usr/bin/uwsgi | /srv/w | uwsgi --http :80 --master --module shop.wsgi:application | shop
         /usr/bin/uwsgi | /srv/w | uwsgi --ini /etc/uwsgi/shop.ini | shop
         /usr/bin/uwsgi | /srv/w | uwsgi --ini uwsgi.ini | w
         /usr/bin/python3 | / | python /venv/bin/airflow webserver | airflow
         /usr/bin/python3 | / | python /venv/bin/opentelemetry-instrument python app.py | app
         /usr/bin/python3 | / | python /venv/bin/ddtrace-run gunicorn shop.wsgi | shop
         /usr/bin/pypy3 | / | pypy3 bench.py | bench",
    );
}

#[test]
fn java() {
    check_lines(
        "/usr/lib/jvm/17/bin/java | / | java -jar shop.jar | shop
         /usr/bin/java | / | java -Xmx1g -jar /opt/shop-1.2.3.jar --server.port=80 | shop
         /usr/bin/java | / | java -jar target/order-service-0.0.1-SNAPSHOT.jar | order-service
         /usr/bin/java | / | java -jar cart-2.0.0.RELEASE-exec.jar | cart
         /usr/bin/java | / | java -jar api-all.jar | api
         /usr/bin/java | / | java -jar shop-1.0-jar-with-dependencies.jar | shop
         /usr/bin/java | / | java -jar s3-2fa.war | s3-2fa
         /usr/bin/java | / | java -cp lib/a.jar:lib/b.jar com.acme.shop.Main | shop
         /usr/bin/java | / | java -classpath x --add-opens java.base/java.lang=ALL-UNNAMED com.acme.OrderService a b | OrderService
         /usr/bin/java | / | java -cp . Main | Main
         /usr/bin/java | / | java Server.java 8080 | Server
         /usr/bin/java | / | java -m com.acme.shop/com.acme.shop.Main | shop
         /usr/bin/java | / | java -Dspring.application.name=billing -jar app.jar | billing
         /usr/bin/java | / | java -jar app.jar --spring.application.name=billing | billing
         /usr/bin/java | / | java -javaagent:x.jar -Dotel.service.name=pay -jar app.jar | pay
         /usr/bin/java | /srv/store | java -cp /srv/store org.springframework.boot.loader.JarLauncher | store
         /usr/bin/java | /opt | java -cp shop-3.1.jar org.springframework.boot.loader.launch.PropertiesLauncher | shop
         /usr/bin/java | / | java -Dcatalina.base=/srv/tomcat-shop -classpath b.jar org.apache.catalina.startup.Bootstrap start | tomcat-shop
         /usr/bin/java | / | java -classpath b.jar org.apache.catalina.startup.Bootstrap start | tomcat
         /usr/bin/java | / | java -Xms1g kafka.Kafka config/server.properties | kafka
         /usr/bin/java | / | java -jar /opt/wildfly/jboss-modules.jar -mp modules org.jboss.as.standalone | wildfly
         /usr/bin/java | / | java -Djetty.base=/srv/portal -jar /opt/jetty/start.jar | portal
         /usr/bin/java | / | java -version | -
         /usr/bin/java | / | java | -",
    );
}

#[test]
fn javascript() {
    check_lines(
        "/usr/bin/node | /srv/shop | node server/index.js | shop-web
         /usr/bin/node | / | node /srv/shop/dist/src/main.js | shop-web
         /usr/bin/node | /srv/mono/apps/cart | node --max-old-space-size=512 -r dotenv/config . | @acme/cart
         /usr/bin/node | /srv/plain | node server.js | server
         /usr/bin/node | /srv/plain | node src/index.js | plain
         /usr/bin/node | | node index.js | index
         /usr/bin/node | /srv/shop | node --import tsx src/server.ts | shop-web
         /usr/bin/node | /srv/shop | node -e 1 | -
         /usr/bin/node | /srv/shop | node /srv/shop/node_modules/.bin/next start | shop-web
         /usr/bin/node | /srv/shop | node /usr/lib/node_modules/pm2/bin/x.js start | shop-web
         /usr/bin/node | /srv/shop | node /usr/bin/npm start | shop-web
         /usr/bin/node | /srv/other | node /usr/bin/yarn run dev | other
         /usr/bin/node | /srv/shop | node --title=front x.js | front
         /usr/bin/node | /x | node --watch server.js | server
         /usr/bin/node | /x | ts-node | -
         /usr/local/bin/bun | /srv/shop | bun run start | shop-web
         /usr/local/bin/bun | /srv/x | bun index.ts | x
         /usr/bin/deno | /srv/x | deno run -A api.ts | api
         /usr/bin/deno | /srv/x | deno serve https://example.com/hello.ts | hello",
    );
}

#[test]
fn ruby_php_dotnet_and_others() {
    check_lines(
        "/usr/bin/ruby3.2 | /srv/store | ruby bin/rails server -b 0.0.0.0 | store
         /usr/bin/ruby | / | ruby /srv/store/bin/rails s | store
         /usr/bin/ruby | /srv/store | ruby /usr/local/bin/puma -C config/puma.rb | store
         /usr/bin/ruby | /srv/store | /usr/bin/ruby /usr/bin/bundle exec puma | store
         /usr/bin/ruby | / | ruby -I lib app.rb | app
         /usr/bin/ruby | / | ruby -e 1 | -
         /usr/bin/ruby | / | ruby /usr/bin/puma | puma
         /usr/bin/php8.2 | /srv/store | php artisan serve | store
         /usr/bin/php8.2 | /srv/store | php -S 0.0.0.0:80 -t public | store
         /usr/bin/php | / | php server.php | server
         /usr/bin/php | /srv/api | php bin/console messenger:consume | api
         /usr/sbin/php-fpm8.2 | / | php-fpm8.2 | php-fpm
         /usr/bin/dotnet | /app | dotnet Shop.Api.dll | Shop.Api
         /usr/bin/dotnet | / | dotnet exec --runtimeconfig x.json /app/Shop.dll | Shop
         /usr/bin/dotnet | /srv/store | dotnet run --project src/Store.Web | Store.Web
         /usr/bin/dotnet | /srv/store | dotnet watch run | store
         /usr/bin/perl | / | perl -I lib /srv/app.pl daemon | app
         /usr/lib/erlang/bin/beam.smp | / | beam.smp -W w -- -root /usr -sname rabbit@host | rabbit
         /usr/sbin/nginx | / | nginx -g off | nginx
         /app/shop-server | / | /app/shop-server --port 80 | shop-server
         /usr/bin/curl | / | curl http://localhost | curl
         /app/Shop.Api | /app | ./Shop.Api | Shop.Api
         | / | ./gone --flag | gone
         /bin/busybox | / | httpd -f | httpd",
    );
}

#[test]
fn wrappers() {
    check_lines(
        "/usr/bin/sudo | / | sudo -u www -E A=b python app.py | app
         /sbin/tini | / | tini -g -- java -jar shop.jar | shop
         /usr/bin/dumb-init | /srv/shop | dumb-init node server.js | shop-web
         /usr/bin/env | / | env -u X A=1 gunicorn shop.wsgi | shop
         /usr/bin/timeout | / | timeout -k 5 30 python3 job.py | job
         /usr/bin/nice | / | nice -n 5 nohup setsid ./worker | worker
         /usr/bin/gosu | / | gosu www:www uvicorn shop.main:app | shop
         /bin/bash | / | bash -e /srv/start.sh x | start
         /bin/bash | / | -bash | -
         /usr/bin/poetry | / | poetry run uvicorn shop:app | shop",
    );
    for (line, expected) in [
        (
            &["sh", "-c", "cd /srv && PORT=80 exec python app.py"][..],
            Some("app"),
        ),
        (
            &["/bin/sh", "-ec", "java $OPTS -jar 'shop-1.0.jar'"],
            Some("shop"),
        ),
        (&["bash", "-lc", "bundle exec puma -p 80"], Some("puma")),
        (&["sh", "-c", ""], None),
        (&["sh", "-c", "A=1"], None),
    ] {
        check("/bin/sh", "/", line, expected);
    }
}

#[test]
fn titles() {
    for (exe, cwd, title, expected) in [
        (
            "/usr/sbin/nginx",
            "/",
            "nginx: worker process",
            Some("nginx"),
        ),
        (
            "/usr/sbin/nginx",
            "/",
            "nginx: master process /usr/sbin/nginx -g daemon off;",
            Some("nginx"),
        ),
        (
            "/usr/bin/python3",
            "/",
            "gunicorn: worker [shop]",
            Some("shop"),
        ),
        (
            "/usr/bin/python3",
            "/",
            "gunicorn: master [shop.wsgi:app]",
            Some("shop"),
        ),
        (
            "/usr/bin/ruby",
            "/",
            "puma 6.4.0 (tcp://0.0.0.0:3000) [shop]",
            Some("shop"),
        ),
        (
            "/usr/bin/ruby",
            "/",
            "puma: cluster worker 0: 1234 [shop]",
            Some("shop"),
        ),
        (
            "/usr/bin/ruby",
            "/",
            "sidekiq 7.1.0 shop [0 of 5 busy]",
            Some("shop"),
        ),
        (
            "/usr/bin/ruby",
            "/srv/store",
            "unicorn worker[0] -c config/unicorn.rb",
            Some("store"),
        ),
        (
            "/usr/bin/ruby",
            "/",
            "Passenger RubyApp: /srv/shop (production)",
            Some("shop"),
        ),
        (
            "/usr/sbin/php-fpm8.2",
            "/",
            "php-fpm: pool www",
            Some("php-fpm"),
        ),
        (
            "/usr/sbin/php-fpm8.2",
            "/",
            "php-fpm: pool shop",
            Some("shop"),
        ),
        (
            "/usr/bin/node",
            "/srv/shop",
            "next-server (v14.2.3)",
            Some("shop-web"),
        ),
        ("/usr/bin/node", "/srv/shop", "npm start", Some("shop-web")),
        (
            "/usr/bin/node",
            "/",
            "PM2 v5.3.0: God Daemon (/root/.pm2)",
            Some("pm2"),
        ),
        (
            "/usr/bin/python3",
            "/",
            "[celeryd: celery@host:MainProcess] -active- (worker -A shop)",
            Some("shop"),
        ),
        (
            "/usr/lib/postgresql/15/bin/postgres",
            "/",
            "postgres: writer process",
            Some("postgres"),
        ),
        ("/usr/sbin/sshd", "/", "sshd: root@pts/0", Some("sshd")),
    ] {
        check(exe, cwd, &[title], expected);
    }
}

#[test]
fn odd_input_gives_no_odd_name() {
    check("", "", &[], None);
    check("", "", &[""], None);
    check("/x/tool", "", &[], Some("tool"));
    check("/bin/sh", "", &["sh", "-c", &"sh -c ".repeat(100)], None);
    let long = "x".repeat(1000);
    check("", "", &[&long], Some(&long[..128]));
}

proptest::proptest! {
    #[test]
    fn no_command_line_panics(
        exe in ".{0,12}",
        cwd in "(/[a-z.]{0,5}){0,4}",
        words in proptest::collection::vec("(python3|java|node|sh|env|-c|-m|-jar|--|gunicorn|.{0,12})", 0..8),
    ) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let command = Command {
            exe: Some(&exe),
            args: &words,
            cwd: Some(Path::new(&cwd)),
            env: &|_| None,
            package_name: &|_| None,
        };
        let name = service_name(&command);
        proptest::prop_assert!(name.is_none_or(|name| !name.is_empty() && name.chars().count() <= 128));
    }
}
