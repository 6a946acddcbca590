import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.concurrent.Executors;

/**
 * One hop of a chain: Hop.java ADDRESS NEXT MARK serves HTTP on ADDRESS and asks NEXT for the same path before
 * it answers. Prints its port; ends with its stdin.
 */
public final class Hop {
    public static void main(String[] arguments) throws IOException {
        String next = arguments[1];
        HttpServer server = HttpServer.create(new InetSocketAddress(arguments[0], 0), 128);
        server.createContext("/", exchange -> answer(exchange, next));
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
        System.out.println(server.getAddress().getPort());
        while (System.in.read() >= 0) {}
        System.exit(0);
    }

    private static void answer(HttpExchange exchange, String next) throws IOException {
        try (exchange) {
            URI uri = URI.create(next + exchange.getRequestURI().getPath());
            HttpURLConnection call = (HttpURLConnection) uri.toURL().openConnection();
            byte[] body = call.getInputStream().readAllBytes();
            exchange.sendResponseHeaders(call.getResponseCode(), body.length);
            exchange.getResponseBody().write(body);
        }
    }
}
