import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/**
 * The JDK's HTTP client, which asks for an upgrade to HTTP/2 with its first request. Sends GET for
 * each URL, or POST with a body for those behind "post", and prints the version of each response.
 */
public final class Upgrade {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).build();
        boolean post = false;
        for (String argument : arguments) {
            if (argument.equals("post")) {
                post = true;
                continue;
            }
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(argument));
            if (post) {
                request.POST(HttpRequest.BodyPublishers.ofString("x".repeat(3000)));
            }
            HttpResponse<byte[]> response = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
            System.out.println(response.version() + " " + response.statusCode());
        }
    }
}
