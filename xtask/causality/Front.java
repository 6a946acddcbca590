// com.sun.net.httpserver with a pool of threads and HttpURLConnection; FAN says how calls at the
// same time are made: thread (new ones), pool (a shared executor), async (HttpClient.sendAsync),
// future (a chain of CompletableFuture).
import com.sun.net.httpserver.HttpServer;
import java.net.*;
import java.net.http.*;
import java.util.*;
import java.util.concurrent.*;

public class Front {
    static final String NEXT = System.getenv("NEXT");
    static final boolean FRESH = "1".equals(System.getenv("FRESH"));
    static final String FAN = Optional.ofNullable(System.getenv("FAN")).orElse("thread");
    static final ExecutorService POOL = Executors.newFixedThreadPool(16);
    static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    static void call(String path) {
        try {
            if (FAN.equals("async")) {
                later(path).join();
                return;
            }
            HttpURLConnection c = (HttpURLConnection) new URL("http://" + NEXT + path).openConnection();
            if (FRESH) c.setRequestProperty("Connection", "close");
            try (var in = c.getInputStream()) {
                in.readAllBytes();
            }
        } catch (Exception e) {
            throw new RuntimeException(e);
        }
    }

    static CompletableFuture<?> later(String path) {
        var request = HttpRequest.newBuilder(URI.create("http://" + NEXT + path)).build();
        return CLIENT.sendAsync(request, HttpResponse.BodyHandlers.ofString());
    }

    static void fan(String name, int from, int count) throws Exception {
        var threads = new ArrayList<Thread>();
        var futures = new ArrayList<Future<?>>();
        for (int n = from; n < from + count; n++) {
            String path = "/b/" + name + "/" + n;
            switch (FAN) {
                case "pool" -> futures.add(POOL.submit(() -> call(path)));
                case "async" -> futures.add(later(path));
                case "future" -> futures.add(CompletableFuture.supplyAsync(() -> path)
                    .thenApplyAsync(text -> { call(text); return text; }));
                default -> threads.add(new Thread(() -> call(path)));
            }
        }
        for (var thread : threads) thread.start();
        for (var thread : threads) thread.join();
        for (var future : futures) future.get();
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 128);
        server.setExecutor(Executors.newFixedThreadPool(48));
        server.createContext("/", exchange -> {
            var query = new HashMap<String, String>();
            for (String pair : exchange.getRequestURI().getQuery().split("&")) {
                var parts = pair.split("=");
                query.put(parts[0], parts[1]);
            }
            String name = exchange.getRequestURI().getPath().split("/")[2];
            int row = Integer.parseInt(query.get("row")), fan = Integer.parseInt(query.get("fan"));
            int status = 200;
            try {
                for (int n = 0; n < row; n++) call("/b/" + name + "/" + n);
                fan(name, row, fan);
            } catch (Exception e) {
                status = 500;
            }
            exchange.sendResponseHeaders(status, 2);
            exchange.getResponseBody().write("ok".getBytes());
            exchange.close();
        });
        server.start();
        var background = new Thread(() -> {
            for (int n = 0; ; n++) {
                try {
                    call("/b/background-" + port + "-" + n + "/0");
                    Thread.sleep(10);
                } catch (Exception e) {
                    // The backend is gone: the end.
                }
            }
        });
        background.setDaemon(true);
        background.start();
    }
}
