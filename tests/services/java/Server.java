import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** The JDK's own HTTP server. Prints its port; ends with its stdin. */
public final class Server {
    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 128);
        server.createContext("/", Server::answer);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.start();
        System.out.println(server.getAddress().getPort());
        while (System.in.read() >= 0) {}
        System.exit(0);
    }

    private static void answer(HttpExchange exchange) throws IOException {
        try (exchange) {
            exchange.getRequestBody().readAllBytes();
            String query = exchange.getRequestURI().getQuery();
            int status = number(query, "status");
            int bytes = number(query, "bytes");
            int delay = number(query, "delay_ms");
            if (delay > 0) {
                Thread.sleep(delay);
            }
            boolean bodiless = status == 204 || status == 304 || bytes == 0
                || exchange.getRequestMethod().equals("HEAD");
            // 0 would mean chunks of unknown number: used for large bodies.
            exchange.sendResponseHeaders(status, bodiless ? -1 : bytes > 100000 ? 0 : bytes);
            if (!bodiless) {
                byte[] body = new byte[bytes];
                java.util.Arrays.fill(body, (byte) 'x');
                try (OutputStream stream = exchange.getResponseBody()) {
                    stream.write(body);
                }
            }
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private static int number(String query, String key) {
        for (String pair : query.split("&")) {
            if (pair.startsWith(key + "=")) {
                return Integer.parseInt(pair.substring(key.length() + 1));
            }
        }
        return 0;
    }
}
