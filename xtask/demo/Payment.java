// Demo: the shop's payment, in Java; also its stock where there is no Go. No tracing code.
import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

public class Payment {
    public static void main(String[] args) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), 0), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            exchange.getRequestBody().readAllBytes();
            var uri = exchange.getRequestURI().toString();
            int status = 200;
            var text = "{\"done\":true}";
            if (uri.contains("card=declined")) {
                status = 500;
                text = "{\"error\":\"the bank does not answer\"}";
            } else if (uri.endsWith("/999")) {
                status = 404;
                text = "{\"error\":\"no such product\"}";
            } else if (uri.startsWith("/report")) {
                try {
                    Thread.sleep(400);
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                }
            }
            var body = text.getBytes("UTF-8");
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(status, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }
}
