// Work in other threads that is easily taken for a request's; HOW says which. Calls for a request are
// /b/ID/N, those of nobody in particular /b/background-N/0.
//
// pool      requests and a thread of nobody's share a pool with less threads than there is work
// batch     requests leave notes for a thread that sends them when there are some, or after a while
// lock      a thread of nobody's calls while it holds a lock that requests take as well
// after     requests give work to a pool, and answer without waiting for it
// schedule  a pool does what requests give it, and something every few milliseconds
import com.sun.net.httpserver.HttpServer;
import java.net.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.locks.ReentrantLock;

public class Odd {
    static final String NEXT = System.getenv("NEXT");
    static final String HOW = System.getenv("HOW");
    static final int SIZE = HOW.equals("pool") ? 2 : 6;
    static final ScheduledThreadPoolExecutor POOL = new ScheduledThreadPoolExecutor(SIZE);
    static final ExecutorService FIXED = Executors.newFixedThreadPool(SIZE);
    static final ReentrantLock LOCK = new ReentrantLock();
    static final BlockingQueue<String> NOTES = new LinkedBlockingQueue<>();

    static void call(String path) {
        try {
            var connection = (HttpURLConnection) new URL("http://" + NEXT + path).openConnection();
            try (var in = connection.getInputStream()) {
                in.readAllBytes();
            }
        } catch (java.io.IOException e) {
            // The backend is gone: the end.
        }
    }

    static void nobodys(int n) {
        call("/b/background-" + n + "/0");
    }

    static void serve(String name) throws Exception {
        ExecutorService pool = HOW.equals("schedule") ? POOL : FIXED;
        switch (HOW) {
            case "batch" -> {
                NOTES.add(name);
                call("/b/" + name + "/0");
            }
            case "lock" -> {
                LOCK.lock();
                try {
                    call("/b/" + name + "/0");
                } finally {
                    LOCK.unlock();
                }
                pool.submit(() -> call("/b/" + name + "/1")).get();
            }
            case "after" -> {
                for (int n = 0; n < 3; n++) {
                    String path = "/b/" + name + "/" + n;
                    pool.submit(() -> call(path));
                }
            }
            default -> {
                var all = new ArrayList<Future<?>>();
                for (int n = 0; n < 3; n++) {
                    String path = "/b/" + name + "/" + n;
                    all.add(pool.submit(() -> call(path)));
                }
                for (var one : all) one.get();
            }
        }
    }

    static void background() throws Exception {
        switch (HOW) {
            case "schedule" -> {
                int[] n = {0};
                POOL.scheduleAtFixedRate(() -> nobodys(n[0]++), 5, 5, TimeUnit.MILLISECONDS);
            }
            case "batch" -> {
                for (int n = 0; ; n++) {
                    var some = new ArrayList<String>();
                    some.add(NOTES.poll(20, TimeUnit.MILLISECONDS));
                    NOTES.drainTo(some);
                    nobodys(n);
                }
            }
            case "lock" -> {
                for (int n = 0; ; n++) {
                    LOCK.lock();
                    try {
                        nobodys(n);
                    } finally {
                        LOCK.unlock();
                    }
                    Thread.sleep(1);
                }
            }
            case "pool" -> {
                for (int n = 0; ; n++) {
                    int now = n;
                    FIXED.submit(() -> nobodys(now));
                    Thread.sleep(5);
                }
            }
            default -> { }
        }
    }

    public static void main(String[] args) throws Exception {
        var server = HttpServer.create(
            new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))), 128);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            int status = 200;
            try {
                serve(exchange.getRequestURI().getPath().split("/")[2]);
            } catch (Exception e) {
                status = 500;
            }
            exchange.sendResponseHeaders(status, 2);
            exchange.getResponseBody().write("ok".getBytes());
            exchange.close();
        });
        server.start();
        var thread = new Thread(() -> {
            try {
                background();
            } catch (Exception e) {
                throw new RuntimeException(e);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }
}
